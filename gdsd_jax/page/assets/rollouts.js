"use strict";
// The rollouts of all runs: filtered, searched and sorted, some groups at a time.

const AT_A_TIME = 5;
const ORDERS = {
  newest: ["newest first", (one, other) => other.step - one.step],
  oldest: ["oldest first", (one, other) => one.step - other.step],
  highest: ["highest reward", (one, other) => worth(other, Math.max) - worth(one, Math.max)],
  lowest: ["lowest reward", (one, other) => worth(one, Math.min) - worth(other, Math.min)],
  spread: ["largest spread", (one, other) => spread(other) - spread(one)],
  longest: ["longest", (one, other) => longest(other) - longest(one)],
};
const NO_FILTER = {run: "", step: "", answer: "", reward: "", least: "", most: "", text: "", order: "newest"};

const filter = {...NO_FILTER, ...place.filter};

/** The reward that is filtered and sorted by: of all, or of the name that the reader chose. */
function rewardOf(told) {
  return filter.reward === "" ? told.reward : told.rewards[filter.reward];
}

function worth(group, extreme) {
  const rewards = [...group.matching].map(rewardOf).filter(isNumber);
  return extreme(...rewards); // of none it is infinite: last in either order
}

function spread(group) {
  const rewards = group.completions.map(rewardOf).filter(isNumber);
  return rewards.length ? Math.max(...rewards) - Math.min(...rewards) : -1;
}

function longest(group) {
  return Math.max(...group.completions.map((told) => told.length));
}

function matchesFilter(group, told, words) {
  const reward = rewardOf(told);
  const answer = told.accuracy === null ? "unknown" : told.accuracy >= 1 ? "right" : "wrong";
  if (filter.answer !== "" && filter.answer !== answer) return false;
  if (filter.least !== "" && !(isNumber(reward) && reward >= Number(filter.least))) return false;
  if (filter.most !== "" && !(isNumber(reward) && reward <= Number(filter.most))) return false;
  const text =
    words === "" ? "" : [told.text, group.reference ?? "", ...group.prompt.map(({content}) => content)].join("\n");
  return text.toLowerCase().includes(words);
}

/** The groups that have a completion which the filter lets through, in order; those are `matching`. */
function found(groups) {
  const words = filter.text.toLowerCase();
  const kept = groups.filter((group) => {
    if (filter.run !== "" && group.run_name !== filter.run) return false;
    if (filter.step !== "" && String(group.step) !== filter.step) return false;
    group.matching = new Set(group.completions.filter((told) => matchesFilter(group, told, words)));
    return group.matching.size > 0;
  });
  return kept.sort(ORDERS[filter.order][1]);
}

/** The section of rollouts: what filters them, and the groups that are left. */
function rolloutsSection(groups) {
  const count = el("p", {class: "quiet", role: "status"});
  const list = el("div", {class: "groups"});
  const completions = groups.reduce((sum, group) => sum + group.completions.length, 0);

  function refresh() {
    const kept = found(groups);
    const matching = kept.reduce((sum, group) => sum + group.matching.size, 0);
    count.textContent = `${matching} of ${completions} completions, in ${kept.length} of ${groups.length} groups`;
    list.replaceChildren();
    more(kept, 0);
    remember("filter", filter);
  }

  function more(kept, from) {
    list.append(...kept.slice(from, from + AT_A_TIME).map((group) => groupCard(group, group.matching)));
    const next = from + AT_A_TIME;
    if (kept.length <= next) return;
    const button = el(
      "button",
      {
        class: "more",
        click: () => {
          button.remove();
          more(kept, next);
        },
      },
      `Show more (${kept.length - next})`,
    );
    list.append(button);
  }

  const isLong = groups.length > 1 || completions > 1;
  forgetWhatIsGone(groups, isLong);
  const bar = isLong ? [filterBar(groups, refresh)] : [];
  refresh();
  return el("section", {id: "rollouts"}, el("h2", {}, "Rollouts"), ...bar, count, list);
}

/** A filter that is remembered may name what the page had before, and hide everything where nobody sees why. */
function forgetWhatIsGone(groups, hasBar) {
  if (!hasBar) Object.assign(filter, NO_FILTER);
  for (const [name, options] of Object.entries(optionsOf(groups))) {
    if (!options.some(([value]) => value === filter[name])) filter[name] = NO_FILTER[name];
  }
}

/** What is in a list of the bar: an option for everything, and what the groups have. */
function optionsOf(groups) {
  const different = (values) => [...new Set(values)];
  const runs = different(groups.map((group) => group.run_name));
  const steps = different(groups.map((group) => group.step)).sort((one, other) => one - other);
  const told = groups.flatMap((group) => group.completions);
  const rewards = different(told.flatMap((completion) => Object.keys(completion.rewards)));
  return {
    run: [["", "all runs"], ...runs.map((name) => [name, name])],
    step: [["", "all steps"], ...steps.map((step) => [String(step), `step ${step}`])],
    answer: [
      ["", "right and wrong"],
      ["right", "right"],
      ["wrong", "wrong"],
      ["unknown", "not judged"],
    ],
    reward: [["", "whole reward"], ...rewards.map((name) => [name, visible(name)])],
    order: Object.entries(ORDERS).map(([name, [text]]) => [name, text]),
  };
}

function filterBar(groups, refresh) {
  const options = optionsOf(groups);
  const set = (name) => (value) => {
    filter[name] = value;
    refresh();
  };
  const list = (label, name) => choice(label, options[name], filter[name], set(name));
  const box = (label, name, attributes) =>
    el("input", {
      ...attributes,
      "aria-label": label,
      value: filter[name],
      input: (event) => set(name)(event.target.value),
    });
  const clear = () => {
    Object.assign(filter, NO_FILTER);
    bar.replaceWith(filterBar(groups, refresh));
    refresh();
  };
  const from = box("Least reward", "least", {type: "number", step: "any", placeholder: "from"});
  const to = box("Most reward", "most", {type: "number", step: "any", placeholder: "to"});
  const bar = el(
    "div",
    {class: "filters", role: "search"},
    box("Search", "text", {type: "search", placeholder: "Search prompts and completions"}),
    options.run.length > 2 ? list("Run", "run") : null,
    options.step.length > 2 ? list("Step", "step") : null,
    list("Answer", "answer"),
    options.reward.length > 1 ? list("Reward", "reward") : null,
    el("span", {class: "range"}, from, "\u2013", to),
    list("Order", "order"),
    el("button", {click: clear}, "Clear"),
  );
  return bar;
}
