"use strict";
// Where the reader is: kept while the page of a run that trains loads itself again.

const PLACE = `gdsd:${location.pathname}`;
const BUSY = 3000; // milliseconds after a reader has touched the page

function stored(store, key, otherwise) {
  try {
    return JSON.parse(store().getItem(key)) ?? otherwise;
  } catch {
    return otherwise; // a browser that keeps nothing for files
  }
}

const place = stored(() => sessionStorage, PLACE, {});

function remember(name, value) {
  place[name] = value;
  try {
    sessionStorage.setItem(PLACE, JSON.stringify(place));
  } catch {
    // the page begins at its top, then
  }
}

/** Loads the page again every so many seconds, unless the reader is busy in it. */
function refreshEvery(seconds) {
  if (!seconds) return;
  let touched = -Infinity;
  for (const kind of ["input", "pointerdown", "keydown", "wheel", "touchmove"]) {
    addEventListener(kind, () => (touched = performance.now()), {capture: true, passive: true});
  }
  const busy = () =>
    document.hidden ||
    performance.now() - touched < BUSY ||
    document.querySelector("[data-playing]") ||
    String(getSelection()) !== "";
  setInterval(() => {
    if (busy()) return;
    remember("seen", seen());
    location.reload();
  }, seconds * 1000);
}

function marks() {
  return [...document.querySelectorAll("section[id], .chart, .group")];
}

/** Which part of the page is on top of the window, and where: what is above it may be of another height next time. */
function seen() {
  if (scrollY === 0) return null;
  const tops = marks().map((mark) => mark.getBoundingClientRect().top);
  const at = Math.max(
    0,
    tops.findLastIndex((top) => top < innerHeight / 2),
  );
  return {at, top: tops[at]};
}

function returnToPlace() {
  history.scrollRestoration = "manual";
  const {at, top} = place.seen ?? {};
  remember("seen", null);
  const back = () => scrollBy(0, (marks()[at]?.getBoundingClientRect().top ?? top) - top);
  if (isNumber(at) && isNumber(top)) for (const wait of [0, 100, 400]) setTimeout(back, wait); // while cards are filled
}
