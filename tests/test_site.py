"""The documentation site: its strict build, which pages it has, and that it asks for nothing from elsewhere."""

import functools
from html.parser import HTMLParser
from http import server
import re
import shutil
import subprocess
import sys
import threading
from urllib.parse import unquote, urldefrag

from browser import chromium
from conftest import REPOSITORY
import pytest
import yaml

import gdsd_jax

LOADED = {  # what a browser fetches by itself: attributes of elements
  "script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
  "object": "data", "embed": "src", "input": "src",
}


class Page(HTMLParser):
  """What a page loads, what it links to, and the names in it that links may end at."""

  def __init__(self, file):
    super().__init__()
    self.loaded, self.links, self.names, self.styles = [], [], set(), []
    self.feed(file.read_text())

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.names |= {attrs.get("id"), attrs.get("name")}
    self.styles.append(attrs.get("style") or "")
    if tag == "a" and attrs.get("href"):
      self.links.append(attrs["href"])
    fetched = tag != "link" or attrs.get("rel") not in ("canonical", "next", "prev", "alternate")
    if fetched and attrs.get(LOADED.get(tag, "")):
      self.loaded.append(attrs[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """The site, built as strictly as Zensical can, and not in the checkout, where a build would leave its cache."""
  root = tmp_path_factory.mktemp("site")
  shutil.copy(REPOSITORY / "mkdocs.yml", root)
  shutil.copytree(REPOSITORY / "docs", root / "docs")
  (root / "gdsd_jax").symlink_to(REPOSITORY / "gdsd_jax")
  command = [sys.executable, "-m", "zensical", "build", "--strict"]
  built = subprocess.run(command, cwd=root, capture_output=True, text=True)
  assert built.returncode == 0, built.stdout + built.stderr
  assert "warning" not in (built.stdout + built.stderr).lower()
  return root / "site"


@pytest.fixture(scope="module")
def pages(site):
  return {file: Page(file) for file in site.rglob("*.html")}


def navigated(entries):
  for entry in entries:
    for value in entry.values():
      yield from [value] if isinstance(value, str) else navigated(value)


def test_the_navigation_has_every_page_once():
  config = (REPOSITORY / "mkdocs.yml").read_text()
  found = list(navigated(yaml.safe_load(config)["nav"]))
  docs = REPOSITORY / "docs"
  assert sorted(found) == sorted(file.relative_to(docs).as_posix() for file in docs.rglob("*.md"))


def test_pages_load_nothing_from_elsewhere(site, pages):
  assert len(pages) > 25
  for file, page in pages.items():
    assert [url for url in page.loaded if re.match(r"(\w+:)?//", url)] == [], file
    assert "url(http" not in " ".join(page.styles)
  for file in site.rglob("*.css"):
    assert re.findall(r"(?:url\(|@import\s)[\"']?(?:https?:)?//[^)\"']*", file.read_text()) == [], file


def test_links_of_the_built_pages_lead_somewhere(site, pages):
  for file, page in pages.items():
    if file.name == "404.html":  # it stands for any address
      continue
    for url in [*page.links, *page.loaded]:
      path, name = urldefrag(unquote(url))
      if re.match(r"\w+:", url):
        assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[^\s]*)?|mailto:\S+|data:\S+", url), f"{file}: {url}"
        continue
      target = (file.parent / path).resolve() if path else file
      target = target / "index.html" if target.is_dir() else target
      assert target.is_relative_to(site.resolve()) and target.exists(), f"{file}: {url}"
      assert not name or target.suffix != ".html" or name in pages[target].names, f"{file}: {url}"


def test_the_reference_has_every_public_name(site, pages):
  said = pages[site / "api" / "index.html"].names
  assert [name for name, module in gdsd_jax._PUBLIC.items() if f"{module}.{name}" not in said] == []
  # So are the fields of dataclasses, by their comments.
  assert "tokens of a completion (L)" in (site / "api" / "index.html").read_text()


class Silent(server.SimpleHTTPRequestHandler):
  def log_message(self, *_):
    pass


@pytest.fixture
def address(site):
  """Where the site is served, as it is where it is published."""
  handler = functools.partial(Silent, directory=site)
  with server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}/"
    serving.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_a_browser_and_asks_nobody_else(site, pages, address, width):
  with chromium() as browser:
    page = browser.new_page(viewport={"width": width, "height": 900})
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    for file in pages:
      if file.name != "404.html":
        page.goto(address + file.parent.relative_to(site).as_posix() + "/")
        fits = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert fits, f"{file.parent.name} is wider than {width}"
    if width == 1280:
      page.get_by_role("button", name="Search").first.click()
      page.keyboard.type("gradient_snr")
      page.get_by_text("The numbers of a step").last.wait_for(timeout=60_000)
  assert errors == []
  assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
