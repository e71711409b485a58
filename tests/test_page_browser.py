"""The pages in a browser: curves are drawn, sliders replay, filters find, and nothing but the page's own code runs."""

import json

from browser import chromium, opened, until
from page_rows import completion, HOSTILE, hostile_row, lines, metrics, row, write_run
import pytest

from gdsd_jax.page.replay import replay_page
from gdsd_jax.page.report import write_report

SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.fixture(scope="module")
def browser():
  with chromium() as started:
    yield started


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  rollouts = [row(step, group, f"Question {step} {group}", rewards=(0.0, group / 4, 1.0))
              for step in range(0, 21, 5) for group in range(4)]
  return write_run(tmp_path_factory.mktemp("runs") / "run", rollouts=rollouts, more={"my/number": 0.5})


def report(*folders, out):
  write_report([str(folder) for folder in folders], str(out), watch=False)
  return out


def texts(page, selector):
  return page.locator(selector).all_text_contents()


def see_groups(page):
  """Scrolls to the rollouts, whose completions are laid out when they come near the window."""
  page.locator(".group").first.scroll_into_view_if_needed()
  page.wait_for_selector(".completion .t", state="attached")


def set_slider(page, selector, value):
  page.locator(selector).first.evaluate(
    "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')) }", value)


# ---------------------------------------------------------------------------------------------------------- curves


@pytest.mark.slow
def test_a_report_draws_curves_replays_and_finds(browser, run, tmp_path):
  pytest.importorskip("plotly")
  with opened(browser, report(run, out=tmp_path / "report.html")) as page:
    page.wait_for_selector(".plot[data-drawn] path.js-line", state="attached")
    assert page.locator(".tile").first.inner_text().startswith("Reward\n0.5 → ")
    see_groups(page)
    group = page.locator(".group").first
    assert group.locator(".completion").count() == 3 and group.locator("h3").inner_text() == "step 20 · group 0"
    tokens = group.locator(".tokens").first
    assert tokens.inner_text() == "20 apples in all<|end|>"  # what is behind the end is hidden
    set_slider(page, ".group input[type=range]", 3)  # the last three tokens, which the model wrote first
    assert tokens.locator(".t").all_text_contents() == ["░░", "░░░░░░░", "░░░", " all", "<|end|>", "<|end|>"]
    page.get_by_role("searchbox", name="Search", exact=True).fill("Question 15 2")
    assert texts(page, ".group h3") == ["step 15 · group 2"]
    assert "3 of 60 completions, in 1 of 20 groups" in page.locator("#rollouts").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("width, scheme", SIZES)
def test_all_curves_are_drawn_at_every_width(browser, run, tmp_path, width, scheme):
  pytest.importorskip("plotly")
  with opened(browser, report(run, out=tmp_path / "report.html"), width, scheme=scheme) as page:
    page.evaluate("document.querySelectorAll('details.curves').forEach((fold) => { fold.open = true })")
    for plot in page.locator(".plot").all():
      plot.scroll_into_view_if_needed()
      plot.locator("path.js-line").first.wait_for(state="attached")
    assert "my/number" in page.locator("#curves").inner_text()
    page.get_by_role("button", name="log").first.click()
    page.locator(".plot").first.locator("text", has_text="10").first.wait_for(state="attached")


@pytest.mark.slow
def test_sixty_curves_of_ten_thousand_steps_are_drawn(browser, tmp_path):
  pytest.importorskip("plotly")
  more = {f"mine/{at}": float(at) for at in range(60)}
  run = write_run(tmp_path / "run", steps=10_000, more=more)
  with opened(browser, report(run, out=tmp_path / "report.html")) as page:
    page.evaluate("document.querySelectorAll('details.curves').forEach((fold) => { fold.open = true })")
    page.locator(".plot").last.scroll_into_view_if_needed()
    page.locator(".plot").last.locator("path.js-line").first.wait_for(state="attached")


@pytest.mark.slow
@pytest.mark.parametrize("width, scheme", SIZES)
def test_runs_are_laid_over_each_other_and_one_can_be_hidden(browser, run, tmp_path, width, scheme):
  pytest.importorskip("plotly")
  name = "a-run-with-a-long-name,objective.name=gdsd_tlc,optimizer.learning_rate=0.0003,seed=12"
  other = write_run(tmp_path / name, seed=1)
  with opened(browser, report(run, other, out=tmp_path / "both.html"), width, scheme=scheme) as page:
    plot = page.locator(".plot").first
    plot.locator(".trace.scatter").first.wait_for(state="attached")
    both = plot.locator(".trace.scatter").count()
    page.locator(".runs-legend input").first.uncheck()
    until(page, f"document.querySelector('.plot').querySelectorAll('.trace.scatter').length < {both}")
    assert "seed" in page.locator("#config").inner_text()


# -------------------------------------------------------------------------------------------------------- rollouts


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_texts_are_shown_and_never_run(browser, tmp_path, width):
  pytest.importorskip("plotly")
  texts_of = list(HOSTILE.values())
  run = write_run(tmp_path / "<img src=x onerror='window.pwned=6'>", rollouts=[hostile_row(1)],
                  more={text: 0.5 for text in texts_of})
  with opened(browser, report(run, out=tmp_path / "report.html"), width) as page:
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true })")
    for plot in page.locator(".plot").all():
      plot.scroll_into_view_if_needed()
    plot.locator("path.js-line").first.wait_for(state="attached")
    plot.hover()
    see_groups(page)
    shown = page.evaluate("[...document.querySelectorAll('.completion')].map((card) =>"
                          " [...card.querySelectorAll('.t')].map((token) => token.textContent).join(''))")
    for text in texts_of:
      plain = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # one alone is shown as such a sign
      seen = plain.translate({code: 0x2400 + code for code in range(32) if code != 10})
      assert f"{seen}\n{seen}" in [each.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for each in shown]


@pytest.mark.slow
def test_a_replay_plays_to_its_end_and_colours_tokens(browser, tmp_path):
  file = tmp_path / "replay.html"
  file.write_text(replay_page("Replay", [row(1)]))
  with opened(browser, file) as page:
    assert texts(page, ".completion:first-child .t") == ["1", " apples", " in", " all", "<|end|>", "<|end|>"]
    bins = [token.get_attribute("data-bin") for token in page.locator(".completion").first.locator(".t").all()]
    assert bins == ["9", "8", "6", "4", "2", "0"]  # the last token was unmasked first
    page.evaluate("window.seen = []; new MutationObserver(() => seen.push(document.querySelectorAll('.masked').length))"
                  ".observe(document.querySelector('output.step'), {childList: true})")
    page.get_by_role("button", name="Play").click()
    until(page, "seen.length >= 7")
    assert page.evaluate("seen") == [12, 10, 8, 6, 4, 2, 0]  # two completions, a token of each in a step
    assert page.locator(".t.masked").count() == 0
    page.get_by_label("Colour of tokens").select_option("confidence")
    bins = [token.get_attribute("data-bin") for token in page.locator(".completion").first.locator(".t").all()]
    assert bins == ["1", "3", "5", "6", "8", "9"]
    page.locator(".t").first.hover()
    assert page.locator(".token-line").first.inner_text().startswith('"1"')
    assert not page.locator(".behind").first.is_visible()
    page.get_by_label("behind the end").check()
    assert page.locator(".behind").first.is_visible()


@pytest.mark.slow
def test_rollouts_are_filtered_and_sorted(browser, run, tmp_path):
  pytest.importorskip("plotly")
  with opened(browser, report(run, out=tmp_path / "report.html")) as page:
    page.get_by_label("Step", exact=True).select_option("10")
    assert texts(page, ".group h3") == [f"step 10 · group {group}" for group in range(4)]
    page.get_by_label("Order").select_option("spread")
    page.get_by_label("Answer").select_option("wrong")
    page.get_by_label("Least reward").fill("0.6")
    assert texts(page, ".group h3") == ["step 10 · group 3"]
    assert page.locator(".completion:not(.other) header").inner_text().split()[1:3] == ["reward", "0.75"]
    page.get_by_label("Reward", exact=True).select_option("format")  # which none of them has
    assert texts(page, ".group h3") == []
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".group").count() == 5 and page.get_by_role("button", name="Show more (15)").is_visible()


def test_a_slider_replays_and_the_search_finds(browser, tmp_path):
  file = tmp_path / "replay.html"
  file.write_text(replay_page("Replay", [row(1, 0, "How many apples?"), row(2, 0, "How many pears?"), hostile_row(3)]))
  with opened(browser, file) as page:
    page.get_by_role("searchbox", name="Search").fill("PEARS")
    assert texts(page, ".group h3") == ["step 2 · group 0"]
    set_slider(page, "input[type=range]", 3)
    assert texts(page, ".completion:first-child .t") == ["░", "░░░░░░░", "░░░", " all", "<|end|>", "<|end|>"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_completions_of_thousands_of_tokens_replay(browser, tmp_path, width):
  file = tmp_path / "replay.html"
  file.write_text(replay_page("Long", [{"completions": [completion([f"word{at} " for at in range(8000)])] * 3}]))
  with opened(browser, file, width) as page:
    page.get_by_role("button", name="Show 24,000 tokens").click()
    set_slider(page, "input[type=range]", 100)
    assert page.locator(".completion").first.locator(".t:not(.masked)").count() == 100


@pytest.mark.slow
def test_a_metric_that_javascript_has_a_meaning_for_is_one_of_the_runs_that_tell_it(browser, tmp_path):
  pytest.importorskip("plotly")
  names = ("constructor", "__proto__", "toString")
  runs = [write_run(tmp_path / "a", more=dict.fromkeys(names, 0.5)), write_run(tmp_path / "b")]
  with opened(browser, report(*runs, out=tmp_path / "report.html")) as page:
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true })")
    for name in names:
      chart = page.locator("figure.chart").filter(has=page.get_by_role("heading", name=name, exact=True))
      chart.scroll_into_view_if_needed()
      chart.locator("path.js-line").first.wait_for(state="attached")


# ----------------------------------------------------------------------------------------------------------- watch


@pytest.mark.slow
def test_a_filter_of_what_is_gone_is_forgotten(browser, tmp_path):
  file = tmp_path / "replay.html"
  file.write_text(replay_page("Replay", [row(1), row(2), row(3)]))
  with opened(browser, file) as page:
    page.get_by_label("Step", exact=True).select_option("2")
    assert texts(page, ".group h3") == ["step 2 · group 0"]
    file.write_text(replay_page("Replay", [row(1), row(3)]))
    page.reload()
    assert texts(page, ".group h3") == ["step 3 · group 0", "step 1 · group 0"]
    page.get_by_role("searchbox", name="Search").fill("nowhere")
    assert texts(page, ".group h3") == []
    file.write_text(replay_page("Replay", [row(1, rewards=(1.0,))]))
    page.reload()
    assert texts(page, ".group h3") == ["step 1 · group 0"]


@pytest.mark.slow
def test_a_watched_page_follows_the_run_and_keeps_the_place(browser, tmp_path, monkeypatch):
  pytest.importorskip("plotly")
  monkeypatch.setattr("gdsd_jax.page.report._watch", lambda *_: None)  # one page after the other, as it would
  run = write_run(tmp_path / "run", done=5, rollouts=[row(step) for step in range(12)])
  write_report([str(run)], None, watch=True)
  with opened(browser, run / "report.html") as page:
    page.get_by_label("Order").select_option("oldest")
    page.evaluate("document.querySelectorAll('.group')[3].scrollIntoView()")
    top = "document.querySelectorAll('.group')[3]?.getBoundingClientRect().top"
    before = page.evaluate(top)
    (run / "metrics.jsonl").write_text(lines(metrics(20)[:11]))
    write_report([str(run)], None, watch=True)
    until(page, "document.body.innerText.includes('10 of 20')")
    until(page, f"Math.abs({top} - {before}) < 20")
    assert page.get_by_label("Order").input_value() == "oldest"


@pytest.mark.slow
def test_a_page_is_light_or_dark_as_the_system_or_the_reader_says(browser, tmp_path):
  file = tmp_path / "replay.html"
  file.write_text(replay_page("Replay", [row(1)]))
  ground = "getComputedStyle(document.body).backgroundColor"
  with opened(browser, file) as light, opened(browser, file, scheme="dark") as dark:
    colours = light.evaluate(ground), dark.evaluate(ground)
    assert colours[0] != colours[1]
    light.get_by_label("Theme").select_option("dark")
    assert light.evaluate(ground) == colours[1]


@pytest.mark.slow
def test_comparisons_fit_the_page(browser, tmp_path):
  pytest.importorskip("plotly")
  folder = tmp_path / "compared"
  folder.mkdir()
  curve = [0.1 * step for step in range(12)]
  of = {"task": "sudoku", "learning_rate": 0.1, "status": "finished", "curve": curve, "skipped": 0, "seconds": 1.0,
        "cpu_seconds": 1.0, "tokens": 10, "config": None, "commit": None, "stage": "runs",
        "evaluations": [{"step": step, "accuracy": 0.5, "reward": 0.5, "sampled_reward": 0.5} for step in (0, 12)]}
  choice = {"rate": 0.1, "means": {"0.1": 0.5}, "at_end": False, "inputs": 2}
  (folder / "x.json").write_text(json.dumps({
    "config": {"seeds": [0, 1], "window": 3, "learning_rates": [0.1], "judged_by": "sampled_reward"},
    "choices": {"sudoku": {"<b>one</b>": choice, "two": choice}},
    "runs": [{**of, "objective": name, "seed": seed, "name": f"{name}{seed}"}
             for name in ("<b>one</b>", "two") for seed in (0, 1)],
  }))
  for width, scheme in SIZES:
    with opened(browser, report(folder, out=tmp_path / "report.html"), width, scheme=scheme) as page:
      page.wait_for_selector(".plot[data-drawn] path.js-line", state="attached")
      assert "<b>one</b>" in page.locator("#comparison").inner_text()
