"use strict";
// Puts the page together from the data in this file.

function draw(data) {
  document.title = data.title;
  const groups = data.runs.flatMap((run) =>
    run.rollouts.map((group) => ({...group, run_name: data.runs.length > 1 ? run.name : null})),
  );
  const sections =
    data.kind === "replay"
      ? [rolloutsSection(groups)]
      : [
          summarySection(data),
          comparisonSection(data.comparison),
          data.groups.length ? curvesSection(data) : null,
          evaluationsSection(data),
          groups.length ? rolloutsSection(groups) : noRollouts(data),
          configSection(data),
          environmentSection(data),
        ];
  const shown = sections.filter((section) => section !== null && section.childElementCount > 0);
  const links = shown
    .filter((section) => section.querySelector("h2"))
    .map((section) => el("a", {href: `#${section.id}`}, section.querySelector("h2").textContent));
  document
    .getElementById("page")
    .append(
      el(
        "header",
        {class: "top"},
        el(
          "div",
          {},
          el("h1", {class: "isolated"}, visible(data.title)),
          data.subtitle ? el("p", {class: "quiet"}, visible(data.subtitle)) : "",
        ),
        themeSwitch(),
      ),
      links.length > 1 ? el("nav", {"aria-label": "Sections"}, links) : "",
      el("main", {}, shown),
      el("footer", {class: "bottom quiet"}, data.made),
    );
  returnToPlace();
  refreshEvery(data.refresh);
}

function noRollouts(data) {
  if (!data.runs.length) return null;
  return el("section", {id: "rollouts"}, el("h2", {}, "Rollouts"), el("p", {class: "quiet"}, data.no_rollouts));
}

draw(JSON.parse(document.getElementById("data").textContent));
