"""Headless Chromium, as tests of pages use it: what goes wrong in a page fails the test that opened it."""

import contextlib
import shutil
import time

import pytest

SECONDS = 120  # that a test waits at most, on a machine that does other things, too
_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def chromium():
  """Debian's browser (apt install chromium), driven by playwright; a test skips where either is missing."""
  playwright = pytest.importorskip("playwright.sync_api")
  program = next(filter(None, map(shutil.which, _NAMES)), None)
  if program is None:
    pytest.skip("there is no Chromium here (apt install chromium)")
  with playwright.sync_playwright() as started:
    browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])  # root has none in a container
    yield browser
    browser.close()


def until(page, expression: str) -> None:
  """Waits until an expression of JavaScript holds. Playwright's own way needs `eval`, which pages forbid."""
  error = pytest.importorskip("playwright.sync_api").Error
  end, holds = time.monotonic() + SECONDS, False
  while not holds:
    assert time.monotonic() < end, f"still not so: {expression}"
    page.wait_for_timeout(50)
    with contextlib.suppress(error):  # the page may load itself again just now
      holds = page.evaluate(expression)


@contextlib.contextmanager
def opened(browser, file, width=1280, height=900, scheme="light", **options):
  """A page of a file. Errors in its console, requests, dialogs and what is wider than the window are failures."""
  page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
  page.set_default_timeout(SECONDS * 1000)
  requests, errors = [], []
  page.on("request", lambda request: requests.append(request.url))
  page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
  page.on("pageerror", lambda error: errors.append(str(error)))
  page.on("dialog", lambda dialog: (errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
  page.goto(file.as_uri())
  yield page
  assert errors == []
  assert set(requests) == {file.as_uri()}  # the page itself, once or, where it is watched, again
  assert page.evaluate("window.pwned") is None
  assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
  page.close()
