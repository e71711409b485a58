"use strict";
// A group of completions side by side, replayed together.

const MILLISECONDS = 2500; // of a whole replay, unless it has so many steps that each would be too short
const MANY_TOKENS = 20000;

/** The card of a group: its prompt, and its completions from the best to the worst. */
function groupCard(group, matches) {
  const replayed = el("div", {class: "replay"});
  const tokens = group.completions.reduce((sum, told) => sum + told.tokens.length, 0);
  const fill = () => replayed.replaceChildren(...replay(group, matches));
  if (tokens > MANY_TOKENS) {
    const button = el("button", {click: fill}, `Show ${tokens.toLocaleString("en")} tokens`);
    replayed.append(
      button,
      el(
        "div",
        {class: "columns"},
        ordered(group).map((told) =>
          completionCard(group, told, matches, el("div", {class: "plain", dir: "auto"}, visible(told.text))),
        ),
      ),
    );
  } else {
    whenNear(replayed, fill);
  }
  return el("article", {class: "group"}, groupHead(group), prompt(group), replayed);
}

function ordered(group) {
  const worth = (told) => (isNumber(told.reward) ? told.reward : -Infinity);
  return [...group.completions].sort((one, other) => worth(other) - worth(one) || one.number - other.number);
}

function groupHead(group) {
  const rewards = group.completions.map((told) => told.reward).filter(isNumber);
  const mean = rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length;
  const facts = [];
  if (group.reference !== null)
    facts.push(el("span", {}, "reference ", el("b", {dir: "auto", class: "isolated"}, visible(group.reference))));
  if (rewards.length > 1) facts.push(el("span", {}, "mean reward ", el("b", {}, short(mean))));
  if (rewards.length > 1 && Math.min(...rewards) === Math.max(...rewards)) {
    facts.push(el("span", {class: "warning"}, "no spread: teaches nothing"));
  }
  if (group.left_out)
    facts.push(el("span", {class: "warning"}, `${group.left_out} more completions have no room here`));
  const where = [
    group.run_name,
    group.step === null ? null : `step ${group.step}`,
    group.group === null ? null : `group ${group.group}`,
  ].filter((part) => part !== null);
  return el("header", {}, el("h3", {class: "isolated"}, where.join(" \u00b7 ")), el("div", {class: "facts"}, facts));
}

function prompt(group) {
  const messages = group.prompt.map(({role, content}) =>
    el(
      "p",
      {},
      el("span", {class: "role"}, visible(role)),
      el("span", {dir: "auto", class: "isolated"}, visible(content)),
    ),
  );
  const last = group.prompt.at(-1)?.content ?? "";
  if (group.prompt.length <= 1 && last.length < 400) return el("div", {class: "prompt"}, messages);
  return el(
    "details",
    {class: "prompt"},
    el("summary", {dir: "auto", class: "isolated"}, visible(last.slice(0, 200)) + (last.length > 200 ? "\u2026" : "")),
    messages,
  );
}

/** Controls, completions and a line on the token under the pointer. */
function replay(group, matches) {
  const steps = stepsOf(group.completions);
  const told = ordered(group);
  const bodies = told.map((completion) => tokensOf(completion, steps));
  const line = el("output", {class: "token-line"}, "Point at a token, or tap it, to see its numbers.");
  const point = (event) => {
    const column = bodies.findIndex(({body}) => body.contains(event.target));
    if (column >= 0 && isNumber(event.target.at)) line.textContent = tokenLine(told[column], event.target.at);
  };
  const columns = el(
    "div",
    {class: "columns", pointerover: point, click: point},
    told.map((completion, at) => completionCard(group, completion, matches, bodies[at].body)),
  );
  if (bodies.some(({hidden}) => hidden)) columns.classList.add("short");
  return [controls(steps, bodies, columns), columns, line];
}

function controls(steps, bodies, columns) {
  const bar = el("div", {class: "controls"});
  if (steps) bar.append(...player(steps, (step) => bodies.forEach(({show}) => show(step))));
  else bar.append(el("span", {class: "quiet"}, "the order of unmasking is not known"));
  const legend = el("span", {class: "legend"});
  const paint = (name) => {
    bodies.forEach((body) => body.paint(name));
    const ends = COLOURS[name].ends;
    legend.replaceChildren(
      ...(ends === null
        ? []
        : [
            ends[0],
            el(
              "span",
              {class: "swatches"},
              Array.from({length: BINS}, (_, bin) => el("i", {"data-bin": bin})),
            ),
            ends[1],
          ]),
    );
    remember("colour", name);
  };
  const first = place.colour ?? (steps ? "step" : "confidence");
  bar.append(
    choice(
      "Colour of tokens",
      Object.entries(COLOURS).map(([name, {text}]) => [name, text]),
      first,
      paint,
    ),
    legend,
  );
  paint(first);
  if (columns.classList.contains("short")) {
    bar.append(
      el(
        "label",
        {class: "tick"},
        el("input", {type: "checkbox", change: (event) => columns.classList.toggle("short", !event.target.checked)}),
        "behind the end",
      ),
    );
  }
  return bar;
}

/** A play button, a slider of steps, and what step it is. */
function player(steps, show) {
  const said = el("output", {class: "step"}, `step ${steps} of ${steps}`);
  const slider = el("input", {
    type: "range",
    min: 0,
    max: steps,
    value: steps,
    "aria-label": "Denoising step",
    input: () => move(Number(slider.value)),
  });
  const button = el(
    "button",
    {class: "play", "aria-label": "Play", click: () => (timer === null ? play() : stop())},
    "\u25b6",
  );
  let timer = null;

  function move(step) {
    slider.value = step;
    said.textContent = `step ${step} of ${steps}`;
    show(step);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    button.textContent = "\u25b6";
    delete button.dataset.playing;
  }

  function play() {
    const wait = Math.max(40, MILLISECONDS / steps);
    const stride = Math.max(1, Math.round((steps * 40) / 6000)); // of thousands of steps, some at a time
    if (Number(slider.value) >= steps) move(0);
    button.textContent = "\u23f8";
    button.dataset.playing = "";
    timer = setInterval(() => {
      move(Math.min(steps, Number(slider.value) + stride));
      if (Number(slider.value) >= steps) stop();
    }, wait);
  }

  return [button, slider, said];
}

function completionCard(group, told, matches, body) {
  const scale = Math.max(...group.completions.map(({advantage}) => Math.abs(advantage ?? 0)), 1e-9);
  const head = el("header", {}, el("span", {class: "number"}, `#${told.number + 1}`));
  if (isNumber(told.reward)) head.append(el("span", {}, "reward ", el("b", {}, short(told.reward))));
  if (isNumber(told.accuracy)) {
    head.append(
      told.accuracy >= 1
        ? el("span", {class: "right"}, "\u2713 right")
        : told.accuracy <= 0
          ? el("span", {class: "wrong"}, "\u2717 wrong")
          : el("span", {}, `${short(told.accuracy)} right`),
    );
  }
  const card = el("section", {class: !matches || matches.has(told) ? "completion" : "completion other"}, head);
  if (isNumber(told.advantage)) {
    const bar = el("i", {class: told.advantage < 0 ? "bar down" : "bar up"});
    bar.style.width = `${(50 * Math.abs(told.advantage)) / scale}%`;
    card.append(
      el("div", {class: "advantage"}, el("span", {class: "track"}, bar), `advantage ${signed(told.advantage)}`),
    );
  }
  const parts = Object.entries(told.rewards).map(([name, reward]) =>
    el("span", {}, el("span", {class: "isolated"}, visible(name)), ` ${short(reward)}`),
  );
  parts.push(el("span", {}, `${told.length} ${told.length === 1 ? "token" : "tokens"}`));
  card.append(body, el("footer", {}, parts));
  return card;
}
