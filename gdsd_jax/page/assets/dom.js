"use strict";
// Elements and numbers. Text of the user's comes into the page by text nodes alone.

/** An element with attributes, listeners (functions, by the event's name) and children, which are elements or text. */
function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** A drop-down list of [value, text] pairs. */
function choice(label, options, value, onchange) {
  const list = el(
    "select",
    {"aria-label": label, change: () => onchange(list.value)},
    options.map(([key, text]) => el("option", {value: key}, text)),
  );
  list.value = value;
  if (list.selectedIndex < 0) list.selectedIndex = 0;
  return list;
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** A number in few characters; a dash for none. */
function short(value, digits = 3) {
  if (!isNumber(value)) return "\u2013";
  if (value !== 0 && (Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3)) return value.toExponential(digits - 2);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return value.toLocaleString("en", {
    maximumSignificantDigits: Math.max(digits, Math.ceil(Math.log10(Math.abs(value)))),
  });
}

/** The same with its sign. */
function signed(value) {
  return isNumber(value) && value > 0 ? `+${short(value)}` : short(value).replace("-", "\u2212");
}

/** Text as it can be seen: characters that control a terminal become their pictures, lines and tabs stay. */
function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (character) => {
    const code = character.charCodeAt(0);
    return code === 0x7f ? "\u2421" : String.fromCharCode(0x2400 + code);
  });
}

/** Calls `act` once, when the element comes near what is on the screen. */
function whenNear(element, act) {
  const watcher = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watcher.disconnect();
      act();
    },
    {rootMargin: "400px"},
  );
  watcher.observe(element);
}
