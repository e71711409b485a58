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
    remember("scroll", scrollY);
    location.reload();
  }, seconds * 1000);
}

function returnToPlace() {
  if (isNumber(place.scroll)) scrollTo(0, place.scroll);
  history.scrollRestoration = "manual";
  remember("scroll", null);
}
