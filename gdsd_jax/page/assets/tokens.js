"use strict";
// A completion as its tokens, each hidden until the step at which it was unmasked, in the colour of a number of it.

const BINS = 10;
const SHADE = "\u2591";
const TURNS = /[\u200e\u200f\u202a-\u202e\u2066-\u2069]/; // the direction of text, of which a token keeps it to itself
// Which bin of the palette a number falls in, from 0 to 1.
const COLOURS = {
  step: {
    text: "colour: step",
    ends: ["first step", "last"],
    of: (told, at, steps) => (told.unmasked ? told.unmasked[at] / Math.max(1, steps - 1) : null),
  },
  confidence: {text: "colour: confidence", ends: ["0", "confidence 1"], of: (told, at) => told.confidence?.[at]},
  logp: {
    text: "colour: log-probability",
    ends: ["\u22125 nats", "0"],
    of: (told, at) => (isNumber(told.logp?.[at]) ? 1 + told.logp[at] / 5 : null),
  },
  none: {text: "no colour", ends: null, of: () => null},
};

/** What stands for a token that is masked still: as wide as it, with its lines. */
function shaded(piece) {
  return Array.from(piece, (character) => (character === "\n" ? "\n" : SHADE)).join("") || SHADE;
}

/** How many denoising steps made these completions; 0 where that is not known. */
function stepsOf(completions) {
  let steps = 0;
  for (const told of completions) for (const step of told.unmasked ?? []) steps = Math.max(steps, step + 1);
  return steps;
}

/**
 * A completion as tokens that can be replayed.
 *
 * show(step) shows it after so many steps; paint(name) colours it by one of COLOURS. What lies behind the end of text
 * is out of sight until the reader asks for it.
 */
function tokensOf(told, steps) {
  const body = el("div", {class: "tokens", dir: "auto"});
  const byStep = new Map();
  let hidden = 0;
  const spans = told.tokens.map((piece, at) => {
    const behind = at > told.length;
    hidden += behind;
    const span = el(
      "span",
      {class: `t${behind ? " behind" : ""}${TURNS.test(piece) ? " isolated" : ""}`},
      visible(piece),
    );
    span.at = at;
    const step = told.unmasked?.[at] ?? 0;
    if (!byStep.has(step)) byStep.set(step, []);
    byStep.get(step).push(span);
    return span;
  });
  body.append(...spans);
  let shown = steps;

  function show(step) {
    const [low, high] = [Math.min(step, shown), Math.max(step, shown)];
    for (let at = low; at < high; at++) {
      for (const span of byStep.get(at) ?? []) {
        const piece = visible(told.tokens[span.at]);
        span.textContent = step > at ? piece : shaded(piece);
        span.classList.toggle("masked", step <= at);
      }
    }
    for (const span of byStep.get(shown - 1) ?? []) span.classList.remove("new");
    if (step < steps) for (const span of byStep.get(step - 1) ?? []) span.classList.add("new");
    shown = step;
  }

  function paint(name) {
    for (const span of spans) {
      const part = COLOURS[name].of(told, span.at, steps);
      const bin = isNumber(part) ? Math.floor(Math.min(0.999, Math.max(0, part)) * BINS) : null;
      if (bin === null) delete span.dataset.bin;
      else span.dataset.bin = bin;
    }
  }

  return {body, show, paint, hidden};
}

/** What is known of one token, in a line. */
function tokenLine(told, at) {
  const parts = [JSON.stringify(told.tokens[at]), `token ${at + 1} of ${told.tokens.length}`];
  if (told.unmasked) parts.push(`unmasked in step ${told.unmasked[at] + 1}`);
  if (isNumber(told.confidence?.[at])) parts.push(`confidence ${short(told.confidence[at])}`);
  if (isNumber(told.logp?.[at])) parts.push(`log-probability ${short(told.logp[at])}`);
  return parts.join("  \u00b7  ");
}
