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

/** What a chart's lines are: their names with their keys, where it has several, and what the documentation says. */
function caption(metrics) {
  const texts = [...new Set(metrics.map((metric) => metric.about))];
  const legend = metrics.map((metric, at) => [key(at), el("b", {}, visible(metric.name))]);
  const lines =
    metrics.length === 1
      ? [texts]
      : texts.length > 1
        ? legend.map((parts, at) => [...parts, ` ${metrics[at].about}`])
        : [...legend, texts];
  const healthy = [...new Set(metrics.map((metric) => metric.healthy))].filter((text) => text !== "");
  const more = healthy.length
    ? el(
        "details",
        {},
        el("summary", {}, "healthy?"),
        healthy.map((text) => el("p", {}, text)),
      )
    : "";
  return el(
    "div",
    {class: "about"},
    el(
      "ul",
      {},
      lines.map((parts) => el("li", {}, ...parts)),
    ),
    more,
  );
}

/** What all charts share: which runs are hidden, over how many steps lines are smoothed, and to draw all again. */
function curveState(data) {
  const state = {hidden: new Set(place.hidden), smoothing: Number(place.smoothing ?? 10), charts: []};
  const several = data.runs.length > 1;
  state.redraw = () => state.charts.forEach((made) => made.redraw());
  state.linesOf = (metrics) =>
    metrics.flatMap(({name}, at) =>
      data.runs.flatMap((run, number) => {
        if (!Object.hasOwn(run.series, name) || state.hidden.has(run.name)) return []; // "constructor" is no metric
        const series = run.series[name];
        return [{...series, x: run.axes[series.axis], name: several ? run.name : name, index: several ? number : at}];
      }),
    );
  return state;
}

function curveCard(state, metrics, title) {
  const made = chart(
    () => state.linesOf(metrics),
    () => state.smoothing,
  );
  state.charts.push(made);
  return el(
    "figure",
    {class: "chart"},
    el("figcaption", {}, el("h4", {}, visible(title)), made.button),
    made.plot,
    caption(metrics),
  );
}

/** A group of charts that can be folded; with several runs each chart has one metric. */
function curveGroup(state, {title, charts, open}, several) {
  const cards = charts.flatMap(({title: name, metrics}) =>
    several ? metrics.map((metric) => curveCard(state, [metric], metric.name)) : [curveCard(state, metrics, name)],
  );
  const fold = el(
    "details",
    {class: "curves", toggle: () => remember(`open ${title}`, fold.open)},
    el("summary", {}, el("h3", {}, title), el("span", {class: "quiet"}, String(cards.length))),
    el("div", {class: "charts"}, cards),
  );
  fold.open = place[`open ${title}`] ?? open;
  return fold;
}

function curvesSection(data) {
  const several = data.runs.length > 1;
  const state = curveState(data);
  const smoother = choice("Smoothing", SMOOTHINGS, String(state.smoothing), (value) => {
    state.smoothing = Number(value);
    remember("smoothing", state.smoothing);
    state.redraw();
  });
  const toggle = (run, shown) => {
    if (shown) state.hidden.delete(run.name);
    else state.hidden.add(run.name);
    remember("hidden", [...state.hidden]);
    state.redraw();
  };
  const groups = data.groups.map((group, at) =>
    curveGroup(state, {...group, open: at < (innerWidth > 600 ? 3 : 1)}, several),
  );
  return el(
    "section",
    {id: "curves"},
    el("div", {class: "title"}, el("h2", {}, "Curves"), smoother),
    data.thinned ? el("p", {class: "quiet"}, data.thinned) : "",
    several ? runsLegend(data.runs, state.hidden, toggle) : "",
    groups,
  );
}

/** The runs with the keys of their lines, each with a box that hides it. */
function runsLegend(runs, hidden, toggle) {
  return el(
    "ul",
    {class: "runs-legend"},
    runs.map((run, at) =>
      el(
        "li",
        {},
        el(
          "label",
          {},
          el("input", {
            type: "checkbox",
            checked: !hidden.has(run.name),
            change: (event) => toggle(run, event.target.checked),
          }),
          " ",
          named(run, at),
        ),
      ),
    ),
  );
}
