"use strict";
// Tables: the runs beside each other, evaluations, settings, environment.

/** A table that scrolls within itself, of a kind; cells are text or elements, and numbers stand to the right. */
function table(heads, rows, kind = "") {
  const shown = (value) =>
    typeof value === "string" ? visible(value) : isNumber(value) ? short(value, 4) : (value ?? "\u2013");
  const numeric = heads.map((_, at) => rows.some((row) => isNumber(row[at])));
  const cell = (name, value, at) => el(name, {class: numeric[at] ? "number" : null}, shown(value));
  const head = el(
    "tr",
    {},
    heads.map((text, at) => cell("th", text, at)),
  );
  const body = rows.map((row) =>
    el(
      "tr",
      {class: row.marked ? "marked" : null},
      row.map((value, at) => cell("td", value, at)),
    ),
  );
  return el(
    "div",
    {class: `scroll ${kind}`, tabindex: "0"},
    el("table", {}, heads.some((text) => text !== "") ? el("thead", {}, head) : null, el("tbody", {}, body)),
  );
}

function named(run, at) {
  return el("span", {class: "isolated"}, key(at), visible(run.name));
}

function tiles(run) {
  return el(
    "dl",
    {class: "tiles"},
    run.tiles.map(({label, value, before, note}) =>
      el(
        "div",
        {class: "tile"},
        el("dt", {}, label),
        el("dd", {}, before ? el("span", {class: "before"}, `${before} \u2192 `) : "", value),
        el("dd", {class: "note"}, note ?? ""),
      ),
    ),
  );
}

function summaryTable(runs) {
  const labels = [...new Set(runs.flatMap((run) => run.tiles.map(({label}) => label)))];
  const numberOf = (run, label) => {
    const tile = run.tiles.find((each) => each.label === label);
    return tile?.before ? `${tile.before} \u2192 ${tile.value}` : tile?.value;
  };
  return table(
    ["run", ...labels],
    runs.map((run, at) => [named(run, at), ...labels.map((label) => numberOf(run, label))]),
  );
}

function summarySection(data) {
  const section = el("section", {id: "summary"});
  if (data.runs.length === 1) section.append(tiles(data.runs[0]));
  if (data.runs.length > 1) section.append(el("h2", {}, "Summary"), summaryTable(data.runs));
  const notes = data.runs.flatMap((run) =>
    run.notes.map((note) => (data.runs.length > 1 ? `${run.name}: ${note}` : note)),
  );
  if (notes.length)
    section.append(
      el(
        "ul",
        {class: "notes"},
        notes.map((note) => el("li", {}, visible(note))),
      ),
    );
  return section;
}

function evaluationsSection(data) {
  const told = data.runs.filter((run) => run.evaluations.length);
  if (!told.length) return null;
  const names = [...new Set(told.flatMap((run) => run.evaluations.flatMap((row) => Object.keys(row))))].filter(
    (name) => name !== "step",
  );
  const several = data.runs.length > 1;
  const rows = data.runs.flatMap((run, at) =>
    run.evaluations.map((row) => [...(several ? [named(run, at)] : []), row.step, ...names.map((name) => row[name])]),
  );
  return el(
    "section",
    {id: "evaluations"},
    el("h2", {}, "Evaluations"),
    table([...(several ? ["run"] : []), "step", ...names.map((name) => name.replace("eval/", ""))], rows, "tall"),
  );
}

const CONFIG_VIEWS = {
  recipe: ["what differs from the recipe", (row) => row.differs],
  runs: ["what differs between the runs", (row) => new Set(row.values).size > 1],
  defaults: [
    "what differs from the defaults",
    (row) => row.values.some((value) => value !== null && value !== row.default),
  ],
  all: ["all fields", () => true],
};

/** The rows of a view that have these words, with the values of each run beside their defaults. */
function configTable(data, view, words) {
  const recipe = data.runs.length > 1 ? null : data.config.recipe;
  const rows = data.config.rows
    .filter(CONFIG_VIEWS[view][1])
    .filter(({path, about}) => `${path} ${about}`.toLowerCase().includes(words));
  const heads = [...(data.runs.length > 1 ? data.runs.map(named) : ["value"]), ...(recipe ? [recipe] : []), "default"];
  const line = (row) => {
    const field = el("span", {}, el("code", {}, visible(row.path)), el("small", {}, row.about));
    const cells = [field, ...row.values.map(setting), ...(recipe ? [setting(row.recipe)] : []), setting(row.default)];
    cells.marked = view !== "recipe" && row.differs;
    return cells;
  };
  return rows.length ? table(["field", ...heads], rows.map(line), "config") : el("p", {class: "quiet"}, "No field.");
}

/** The views that say something of these runs. */
function configViews(data) {
  const there = {
    recipe: data.runs.length === 1 && data.config.recipe,
    runs: data.runs.length > 1,
    defaults: data.config.rows.some((row) => row.default !== null),
    all: true,
  };
  return Object.keys(CONFIG_VIEWS).filter((name) => there[name]);
}

function configSection(data) {
  if (!data.config.rows.length) return null;
  const views = configViews(data);
  const body = el("div");
  let view = views.includes(place.config) ? place.config : views[0];
  let words = "";

  function show() {
    body.replaceChildren(configTable(data, view, words));
  }

  const list = choice(
    "Fields",
    views.map((name) => [name, CONFIG_VIEWS[name][0]]),
    view,
    (value) => {
      view = value;
      remember("config", view);
      show();
    },
  );
  const search = (event) => {
    words = event.target.value.toLowerCase();
    show();
  };
  const box = el("input", {type: "search", placeholder: "Search fields", "aria-label": "Search fields", input: search});
  show();
  return el(
    "section",
    {id: "config"},
    el("h2", {}, "Config"),
    data.config.said ? el("p", {class: "quiet"}, data.config.said) : "",
    el("div", {class: "filters"}, list, box),
    body,
  );
}

function setting(value) {
  return value === null || value === undefined
    ? el("span", {class: "quiet"}, "\u2013")
    : el("code", {class: "isolated"}, visible(value));
}

function environmentSection(data) {
  if (!data.environment.length) return null;
  const heads = data.runs.length > 1 ? ["", ...data.runs.map(named)] : ["", ""];
  return el(
    "section",
    {id: "environment"},
    el("h2", {}, "Environment"),
    table(
      heads,
      data.environment.map(({name, values}) => [name, ...values.map(setting)]),
    ),
  );
}

/** What launch/compare.py found: for each task its curves and its table, and who beats whom. */
function comparisonSection(comparison) {
  if (!comparison) return null;
  const section = el("section", {id: "comparison"}, el("h2", {}, "Comparison"));
  for (const task of comparison.tasks) {
    const made = chart(
      () => task.lines,
      () => 1,
    );
    section.append(el("h3", {}, visible(task.name)), task.said ? el("p", {class: "quiet"}, task.said) : "");
    if (task.lines.length) {
      section.append(
        el(
          "figure",
          {class: "chart wide"},
          el("figcaption", {}, el("h4", {}, comparison.axis), made.button),
          made.plot,
          el(
            "ul",
            {class: "runs-legend"},
            task.lines.map((line) => el("li", {}, key(line.index), visible(line.name))),
          ),
        ),
      );
    }
    const rates = el(
      "details",
      {class: "more-numbers"},
      el("summary", {}, task.rates.said),
      table(task.rates.heads, task.rates.rows),
    );
    section.append(table(comparison.heads, task.rows), rates);
  }
  section.append(
    el("h3", {}, "Who beats whom"),
    el("p", {class: "quiet"}, comparison.better.said),
    table(comparison.better.heads, comparison.better.rows),
  );
  return section;
}
