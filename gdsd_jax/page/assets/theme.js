"use strict";
// Light or dark: as the system has it, until the reader chooses.

const THEMES = ["system", "light", "dark"];

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
}

function useTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  dispatchEvent(new Event("themechange"));
}

function themeSwitch() {
  const saved = stored(() => localStorage, "gdsd:theme", "system");
  useTheme(saved);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("themechange")));
  return choice(
    "Theme",
    THEMES.map((theme) => [theme, theme]),
    saved,
    (theme) => {
      try {
        localStorage.setItem("gdsd:theme", JSON.stringify(theme));
      } catch {
        // it holds for this page
      }
      useTheme(theme);
    },
  );
}
