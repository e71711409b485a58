"""Pictures of a run's page for docs/report.md: python docs/screenshots/report.py RUN.

RUN is the folder of a run. Needs Chromium (apt install chromium), playwright and plotly. Writes report_curves.png and,
if it has rollouts, report_replay.png (wide, light) and report_phone.png (narrow, dark) beside this file.
"""

import os
from pathlib import Path
import shutil
import sys
import tempfile

from playwright.sync_api import sync_playwright

from gdsd_jax.page.report import write_report

HERE = Path(__file__).parent
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def pictures(browser, address: str) -> None:
  """Opens the page as a reader would, and takes what is on the screen."""
  page = browser.new_page(viewport=WIDE, color_scheme="light")
  page.goto(address)
  page.wait_for_selector(":nth-match(.plot[data-drawn], 3)")
  page.screenshot(path=HERE / "report_curves.png")
  if not page.locator(".group").count():
    return
  _half_way(page)
  page.screenshot(path=HERE / "report_replay.png")
  phone = browser.new_page(viewport=NARROW, color_scheme="dark", has_touch=True, is_mobile=True)
  phone.goto(address)
  _half_way(phone)
  phone.screenshot(path=HERE / "report_phone.png")


def _half_way(page) -> None:
  """The first group on top, replayed half."""
  page.get_by_label("Order").select_option("spread")
  page.locator(".group").first.evaluate("group => group.scrollIntoView()")
  slider = page.locator(".group input[type=range]").first
  slider.evaluate("slider => { slider.value = slider.max / 2; slider.dispatchEvent(new Event('input')) }")
  page.locator(".t:not(.masked)").first.hover()


def main(run: str) -> None:
  with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
    named = Path("runs") / Path(run).name  # as it is called where it trains, whichever folder that is
    run, file = Path(run).absolute(), Path(folder) / "report.html"
    os.chdir(folder)
    named.parent.mkdir()
    named.symlink_to(run)
    write_report([str(named)], str(file), watch=False)
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    pictures(browser, file.as_uri())
    browser.close()


if __name__ == "__main__":
  main(sys.argv[1])
