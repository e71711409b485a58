"use strict";
// The curves of all metrics, in groups; several runs are laid over each other, a metric a chart.

const SMOOTHINGS = [
  ["1", "as it is"],
  ["10", "mean of 10 steps"],
  ["50", "mean of 50 steps"],
];

/** A small line in the colour and dashes of a chart's line. */
function key(index) {
  const stroke = el("i", {class: "key"});
  stroke.style.borderTopColor = colourOf(index);
  stroke.style.borderTopStyle =
    dashOf(index) === "solid" ? "solid" : dashOf(index).includes("dot") ? "dotted" : "dashed";
  return stroke;
}

function curvesSection(data) {
  let smoothing = Number(place.smoothing ?? 10);
  const charts = [];

  function card(metrics, title) {
    const lines = metrics.flatMap(({name}, at) =>
      data.runs.flatMap((run, number) => {
        const series = run.series[name];
        if (!series) return [];
        const several = data.runs.length > 1;
        return [
          {
            ...series,
            x: run.axes[series.axis],
            name: several ? run.name : name,
            index: several ? number : at,
          },
        ];
      }),
    );
    const made = chart(lines, () => smoothing);
    charts.push(made);
    const texts = [...new Set(metrics.map((metric) => metric.about))];
    const legend = metrics.map((metric, at) => [key(at), el("b", {}, visible(metric.name))]);
    const about =
      metrics.length === 1
        ? [el("li", {}, texts[0])]
        : texts.length === 1
          ? [...legend.map((parts) => el("li", {}, parts)), el("li", {}, texts[0])]
          : legend.map((parts, at) => el("li", {}, parts, ` ${metrics[at].about}`));
    return el(
      "figure",
      {class: "chart"},
      el("figcaption", {}, el("h4", {}, visible(title)), made.button),
      made.plot,
      el("ul", {class: "about"}, about),
    );
  }

  const groups = data.groups.map(({title, charts: of, open}) => {
    const cards = of.flatMap(({title: name, metrics}) =>
      data.runs.length > 1 || metrics.length === 1
        ? metrics.map((metric) => card([metric], metric.name))
        : [card(metrics, name)],
    );
    const fold = el(
      "details",
      {class: "curves", toggle: () => remember(`open ${title}`, fold.open)},
      el("summary", {}, el("h3", {}, title), el("span", {class: "quiet"}, `${cards.length}`)),
      el("div", {class: "charts"}, cards),
    );
    fold.open = place[`open ${title}`] ?? open;
    return fold;
  });
  const smoother = choice("Smoothing", SMOOTHINGS, String(smoothing), (value) => {
    smoothing = Number(value);
    remember("smoothing", smoothing);
    charts.forEach((made) => made.redraw());
  });
  return el(
    "section",
    {id: "curves"},
    el("div", {class: "title"}, el("h2", {}, "Curves"), smoother),
    data.thinned ? el("p", {class: "quiet"}, data.thinned) : "",
    runsLegend(data.runs),
    groups,
  );
}

function runsLegend(runs) {
  if (runs.length < 2) return "";
  return el(
    "ul",
    {class: "runs-legend"},
    runs.map((run, at) => el("li", {}, key(at), el("span", {class: "isolated"}, visible(run.name)))),
  );
}
