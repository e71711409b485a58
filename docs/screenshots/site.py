"""Pictures of this site for docs/architecture.md: python docs/screenshots/site.py, while `zensical serve` runs.

Needs Chromium (apt install chromium) and playwright. Writes site.png and site_phone.png beside this file.
"""

from pathlib import Path
import shutil

from playwright.sync_api import sync_playwright

HERE, ADDRESS = Path(__file__).parent, "http://localhost:8000/"


def main() -> None:
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme="light")
    page.goto(f"{ADDRESS}method/")
    page.screenshot(path=HERE / "site.png")
    narrow = {"width": 390, "height": 844}
    phone = browser.new_page(viewport=narrow, color_scheme="dark", has_touch=True, is_mobile=True)
    phone.goto(f"{ADDRESS}metrics/#rollouts")
    phone.screenshot(path=HERE / "site_phone.png")
    browser.close()


if __name__ == "__main__":
  main()
