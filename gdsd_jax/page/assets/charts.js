"use strict";
// Charts by plotly, which comes compressed in this file and is unpacked when the first chart comes into sight.

// Paul Tol's bright scheme, told apart by colour-blind readers; more lines than colours are dashed.
const PALETTE = ["#4477aa", "#ee6677", "#228833", "#ccaa22", "#66aadd", "#aa3377", "#888888"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const FEW_POINTS = 12;
const FEW_STEPS = 6;

let library = null;

function plotly() {
  library ??= unpack();
  return library;
}

async function unpack() {
  const packed = atob(document.getElementById("library").textContent);
  const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = el("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  return window.Plotly;
}

function colourOf(index) {
  return PALETTE[index % PALETTE.length];
}

function dashOf(index) {
  return DASHES[Math.floor(index / PALETTE.length) % DASHES.length];
}

/** A mean over the last `count` values of each; null where there is none. */
function runningMean(values, count) {
  return values.map((value, at) => {
    const known = values.slice(Math.max(0, at + 1 - count), at + 1).filter(isNumber);
    return isNumber(value) ? known.reduce((sum, each) => sum + each, 0) / known.length : null;
  });
}

/** Plotly reads some markup in names; these are text. */
function asPlotlyText(text) {
  return visible(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** What plotly draws of a line {name, index, x, y, low, high}, smoothed over so many steps. */
function traces(line, smoothing) {
  const colour = colourOf(line.index);
  const common = {x: line.x, type: "scatter", mode: "lines", connectgaps: line.y.length <= FEW_POINTS};
  const drawn = [];
  if (line.low) {
    const edge = {...common, line: {width: 0}, hoverinfo: "skip"};
    drawn.push({...edge, y: line.low}, {...edge, y: line.high, fill: "tonexty", fillcolor: `${colour}2e`});
  }
  const apart = line.x.length > 1 ? (line.x.at(-1) - line.x[0]) / (line.x.length - 1) : 1;
  const count = Math.round(smoothing / apart);
  const smooth = count > 1 && line.y.length > 2 * count;
  if (smooth) drawn.push({...common, y: line.y, line: {color: colour, width: 1}, opacity: 0.3, hoverinfo: "skip"});
  drawn.push({
    ...common,
    y: smooth ? runningMean(line.y, count) : line.y,
    name: asPlotlyText(line.name),
    mode: line.y.length <= FEW_POINTS ? "lines+markers" : "lines",
    marker: {size: 6},
    line: {color: colour, width: 2, dash: dashOf(line.index)},
    hovertemplate: "%{y:.4~g}",
  });
  return drawn;
}

function chartLayout(plot, lines, scale) {
  const steps = lines.flatMap(({x}) => [x[0], x.at(-1)]);
  const few = Math.max(...steps) - Math.min(...steps) <= FEW_STEPS; // ticks at whole ones
  const figure = getComputedStyle(plot.parentElement);
  const ink = getComputedStyle(document.body);
  const [quiet, grid, surface] = [getComputedStyle(plot).color, figure.borderTopColor, figure.backgroundColor];
  const axis = {
    gridcolor: grid,
    zerolinecolor: grid,
    linecolor: grid,
    automargin: true,
    fixedrange: !canHover(),
    nticks: 6,
  };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    autosize: true,
    font: {family: ink.fontFamily, size: 12, color: quiet},
    margin: {l: 40, r: 8, t: 6, b: 28},
    hovermode: "x unified",
    dragmode: canHover() ? "zoom" : false,
    hoverlabel: {bgcolor: surface, bordercolor: grid, font: {color: ink.color}, namelength: 40},
    xaxis: {...axis, ...(few ? {dtick: 1} : {}), hoverformat: ",.0~f", unifiedhovertitle: {text: "step %{x}"}},
    yaxis: {...axis, type: scale, exponentformat: "power"},
  };
}

function canHover() {
  return matchMedia("(hover: hover)").matches;
}

/**
 * A chart of what `lines` returns, [{name, index, x, y, low, high}], drawn when it comes near the screen.
 *
 * `smoothing` tells over how many steps; redraw() draws again, if it was drawn.
 */
function chart(lines, smoothing) {
  const plot = el("div", {class: "plot"});
  let scale = "linear";
  let drawn = false;

  async function draw() {
    drawn = true;
    try {
      const tools = await plotly();
      const shown = lines();
      await tools.react(
        plot,
        shown.flatMap((line) => traces(line, smoothing())),
        chartLayout(plot, shown, scale),
        {
          displaylogo: false,
          responsive: true,
          displayModeBar: canHover() ? "hover" : false,
          modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
        },
      );
      plot.dataset.drawn = "";
    } catch (error) {
      plot.replaceChildren(el("p", {class: "quiet"}, `This browser cannot draw the chart: ${error.message}`));
    }
  }

  function redraw() {
    if (drawn) draw();
  }

  const button = el(
    "button",
    {
      class: "small",
      title: "Logarithmic axis",
      "aria-pressed": "false",
      click: () => {
        scale = scale === "linear" ? "log" : "linear";
        button.setAttribute("aria-pressed", String(scale === "log"));
        redraw();
      },
    },
    "log",
  );
  whenNear(plot, draw);
  addEventListener("themechange", redraw);
  return {plot, button, redraw};
}
