"""launch/report.py: what the page of a run, of several and of a comparison has, and what is said of bad input."""

import json
from pathlib import Path
import random
import threading
import time

from commands import run_command
from documented import documented
from page_rows import completion, hostile_row, lines, metrics, row, write_run
import pytest
from test_comparison_report import report as comparison_report  # noqa: F401  (a fixture)
from test_page import Elements

from gdsd_jax.huggingface.published import HUB_NAMES
from gdsd_jax.page import report as pages
from gdsd_jax.page.configs import presets
from gdsd_jax.page.document import page
from gdsd_jax.page.folders import named_folders
from gdsd_jax.page.metric_groups import explained, groups_of, OTHERS
from gdsd_jax.page.report import write_report
from gdsd_jax.page.series import series_of


@pytest.fixture(autouse=True)
def without_library(monkeypatch):
  """The chart library is long, and the same on every page."""
  monkeypatch.setattr("gdsd_jax.page.document._library", lambda: ("", ""))


def data_of(*folders, out=None):
  """The data of the page of these folders."""
  file = out or folders[0] / "report.html"
  write_report([str(folder) for folder in folders], out and str(out), watch=False)
  return Elements(file.read_text()).data


# ---------------------------------------------------------------------------------------------------------- one run


def test_the_page_of_a_run_has_its_numbers_rollouts_settings_and_environment(tmp_path):
  run = write_run(tmp_path / "run", rollouts=[row(10), row(20, 1)], seed=7, more={"my/number": 3.0})
  data = data_of(run)
  (told,) = data["runs"]
  tiles = {tile["label"]: (tile["before"], tile["value"]) for tile in told["tiles"]}
  last = [each["reward"] for each in metrics(20)[-10:]]
  assert tiles["Reward"] == ("0.5", f"{sum(last) / 10:.3g}") and tiles["Accuracy"] == ("0.25", "0.75")
  assert tiles["Steps"] == (None, "20 of 20") and tiles["Time"] == (None, "52 s")  # 20 · 21 / 2 / 4 seconds
  reward = told["series"]["reward"]
  assert reward["y"] == [each["reward"] for each in metrics(20)] and told["axes"][reward["axis"]] == list(range(21))
  assert told["axes"][told["series"]["eval/accuracy"]["axis"]] == [0, 20]
  assert [each["step"] for each in told["evaluations"]] == [0, 20]
  assert [group["step"] for group in told["rollouts"]] == [10, 20] and told["notes"] == []
  assert data["config"]["recipe"] == "gdsd_math:tiny"
  assert {each["path"] for each in data["config"]["rows"] if each["differs"]} == {"seed", "steps"}
  environment = {each["name"]: each["values"] for each in data["environment"]}
  assert environment["jax"] == ["0.9.0"] and environment["fingerprint of tokenizer"] == ["f" * 12]


def test_every_number_is_in_one_chart_and_users_own_have_a_group(tmp_path):
  data = data_of(write_run(tmp_path / "run", more={"my/number": 3.0, "<b>": 1}))
  shown = [metric["name"] for group in data["groups"] for chart in group["charts"] for metric in chart["metrics"]]
  assert sorted(shown) == sorted(data["runs"][0]["series"])
  (own,) = [group for group in data["groups"] if group["title"] == OTHERS]
  assert [chart["title"] for chart in own["charts"]] == ["<b>", "my/number"]


def test_every_documented_number_is_explained_and_has_its_place():
  names = [name.replace("NAME", "mine") for name in documented() if name != "step"]
  assert [name for name in names if not all(explained(name))] == []
  assert OTHERS not in {group["title"] for group in groups_of(names)}
  assert explained("grad_norm")[0] == "the gradient's norm before it is clipped" and explained("mine") == ("", "")


def test_a_run_of_before_rollouts_and_one_without_a_step_have_a_page(tmp_path):
  old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new", done=0)
  (new / "metrics.jsonl").unlink()
  assert data_of(old)["runs"][0]["rollouts"] == []
  (told,) = data_of(new)["runs"]
  assert told["notes"] == ["metrics.jsonl is missing: the run has made no step yet, or the file is gone"]
  assert [tile["value"] for tile in told["tiles"]] == ["0 of 20"]


def test_a_supervised_run_tells_its_loss(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"kind": "sft", "steps": 2, "batch_size": 8}))
  (tmp_path / "metrics.jsonl").write_text(lines([
    {"step": 0, "eval/loss": 4.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0, "eval/loss": 2.0}]))
  data = data_of(tmp_path)
  tiles = {tile["label"]: (tile["before"], tile["value"]) for tile in data["runs"][0]["tiles"]}
  assert tiles == {"Loss": ("3", "2"), "Validation loss": ("4", "2"), "Steps": (None, "2 of 2")}
  assert data["config"]["recipe"].startswith("sft:")
  (size,) = [each for each in data["config"]["rows"] if each["path"] == "batch_size"]
  assert size["about"] == "examples of an update"


@pytest.mark.parametrize("file, content, note", [
  ("metrics.jsonl", lines(metrics(3)) + '{"step": 4, "rew', None),  # what a kill leaves
  ("metrics.jsonl", lines(metrics(3)) + 'x\n[]\n{"step": "4"}\n\n',
   "metrics.jsonl: 4 of 8 lines are left out, which are damaged; the first is line 5"),
  ("metrics.jsonl", "[" * 100_000 + "\n" + lines(metrics(3)),
   "metrics.jsonl: 1 of 5 lines are left out, which are damaged; the first is line 1"),
  ("rollouts.jsonl", lines([row(1)]) + '{"step": 2, "completions": [{"text": "a', None),
  ("rollouts.jsonl", '{"step": 1}\n' + lines([row(1)]),
   "rollouts.jsonl: 1 of 2 lines are left out, which are damaged; the first is line 1"),
  ("config.json", '{"steps": 3', "config.json is damaged"),
  ("config.json", "[]", "config.json is damaged"),
  ("config.json", None, "config.json is missing"),
])
def test_what_is_left_of_a_run_is_shown_and_what_is_not_is_told(tmp_path, file, content, note):
  run = write_run(tmp_path / "run", steps=3, rollouts=[row(1)])
  if content is None:
    (run / file).unlink()
  else:
    (run / file).write_text(content)
  (told,) = data_of(run)["runs"]
  assert told["notes"] == ([] if note is None else [note])
  assert told["axes"][told["series"]["reward"]["axis"]] == [0, 1, 2, 3] and len(told["rollouts"]) == 1


@pytest.mark.parametrize("change", [
  {"kind": ["sft"]}, {"kind": "unknown"}, {"steps": "many"}, {"task": 5}, {"task": {"name": {"a": 1}}},
  {"sampler": {}}, {"provenance": []},
  {"provenance": {"versions": [], "inputs": {"x": None}, "earlier": 3, "model_commit": 5}},
])
def test_a_config_of_another_shape_is_shown_as_it_is(tmp_path, change):
  run = write_run(tmp_path / "run", steps=1)
  config = json.loads((run / "config.json").read_text())
  (run / "config.json").write_text(json.dumps(config | change))
  data = data_of(run)
  assert data["runs"][0]["notes"] == [] and len(data["config"]["rows"]) > 50


def test_odd_numbers_of_metrics_are_none(tmp_path):
  run = write_run(tmp_path / "run", steps=1)
  (run / "metrics.jsonl").write_text('{"step": 1, "kl": NaN, "a": Infinity, "b": "text", "c": true, "d": 1e999}\n'
                                     f'{{"step": 2, "kl": 0.5, "e": {10**400}}}\n')
  series = data_of(run)["runs"][0]["series"]
  assert series.keys() == {"kl"} and series["kl"]["y"] == [None, 0.5]


def test_long_series_are_thinned_to_means_with_their_range():
  rows = [{"step": step, "reward": random.Random(step).random()} for step in range(1, 10_001)]
  found = series_of(rows, 1000)
  line, steps = found["series"]["reward"], found["axes"][0]
  assert len(steps) == len(line["y"]) == 1000
  values = [each["reward"] for each in rows]
  assert line["y"][7] == pytest.approx(sum(values[70:80]) / 10, rel=1e-4) and 71 <= steps[7] <= 80
  assert (line["low"][7], line["high"][7]) == pytest.approx((min(values[70:80]), max(values[70:80])), rel=1e-4)


@pytest.mark.slow
def test_a_page_has_room_for_a_hundred_steps_with_rollouts_of_thousands_of_tokens(tmp_path, monkeypatch):
  monkeypatch.undo()  # with the library
  pytest.importorskip("plotly")
  words = [random.Random(at).choice(["word ", "other "]) for at in range(8000)]
  rollouts = [{"step": step, "completions": [completion(words)] * 4} for step in range(0, 100, 20)]
  more = {f"number {at}": 0.123456 * at for at in range(60)}
  run = write_run(tmp_path / "run", steps=100, rollouts=rollouts, more=more)
  data = data_of(run)
  assert (run / "report.html").stat().st_size < 5e6
  (told,) = data["runs"]
  assert told["rollouts"] and any("have no room here" in note for note in told["notes"])


def test_texts_of_the_users_come_back_as_they_were(tmp_path):
  run = write_run(tmp_path / "<b>run", rollouts=[hostile_row(1)], more={"</script>": 1.0})
  file = tmp_path / "page.html"
  data = data_of(run, out=file)
  assert data["title"] == "<b>run" and "</script>" in data["runs"][0]["series"]
  harmless = Elements(page("x", {}))
  assert [tag for tag, _ in Elements(file.read_text()).found] == [tag for tag, _ in harmless.found]


# ------------------------------------------------------------------------------------------------------- several


def test_runs_are_laid_over_each_other(tmp_path):
  one, other = write_run(tmp_path / "a" / "run", seed=1), write_run(tmp_path / "b" / "run", seed=2, rollouts=[row(1)])
  data = data_of(one, other, out=tmp_path / "both.html")
  assert [run["name"] for run in data["runs"]] == ["a/run", "b/run"] and data["title"] == "2 runs"
  assert {each["path"] for each in data["config"]["rows"] if len(set(each["values"])) > 1} == {"seed"}


def test_folders_are_named_with_commas_by_several_flags_and_as_sweeps(tmp_path):
  names = ["seed=0,rate=1", "seed=1,rate=1", "plain"]
  for name in names:
    write_run(tmp_path / "sweep" / name, steps=1)
  paths = [f"{tmp_path}/sweep/{name}" for name in names]
  assert [str(path) for path in named_folders([",".join(paths)])] == paths
  assert [str(path) for path in named_folders(paths)] == paths
  assert [run["name"] for run in data_of(tmp_path / "sweep")["runs"]] == sorted(names)


def test_a_comparison_has_its_tables_and_curves(tmp_path, comparison_report):  # noqa: F811
  (tmp_path / "compared.json").write_text(json.dumps(comparison_report))
  data = data_of(tmp_path)
  (task,) = data["comparison"]["tasks"]
  cells = dict(zip(data["comparison"]["heads"], task["rows"][0]))
  assert (cells["objective"], cells["sampled reward"]) == ("gdsd", "0.810 [0.785, 0.835]")
  assert [line["name"] for line in task["lines"]] == ["gdsd", "wd1"] and task["lines"][0]["low"]
  assert data["comparison"]["better"]["rows"][1][:2] == ["wd1", "1.00 [0.44, 1.00]"] and data["runs"] == []


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("workdirs, out, line", [
  ([""], None, "--workdir: '' is no path"),
  *(([workdir], None, f"--workdir: {workdir!r} has a comma with no folder beside it; leave that comma out")
    for workdir in ("{tmp}/run,", ",{tmp}/run", "{tmp}/run, ,{tmp}/run")),
  (["{tmp}/none"], None, "--workdir: {tmp}/none does not exist"),
  (["{tmp}"], None, "--workdir: {tmp} holds no run: there is neither metrics.jsonl nor the config of one"),
  (["{tmp}/model"], None, "--workdir: {tmp}/model holds no run: there is neither metrics.jsonl nor the config of one"),
  (["s3://bucket/run"], None, "--workdir: s3://bucket/run is neither a local folder nor gs://BUCKET/FOLDER"),
  (["{tmp}/run/metrics.jsonl"], None, "--workdir: {tmp}/run/metrics.jsonl is a file; name the folder of a run"),
  (["{tmp}/run", "{tmp}/other"], None, "--out: say in which file the page of several folders goes"),
  (["{tmp}/run"], "{tmp}", "--out: {tmp} is a folder; name a file in it"),
  (["{tmp}/run"], "{tmp}/run/config.json", "--out: {tmp}/run/config.json must end in .html"),
  (["{tmp}/run"], "{tmp}/run/config.json/deep/page.html",
   "--out: {tmp}/run/config.json is a file, and can hold no page.html; name another folder"),
])
def test_bad_input_is_one_line(tmp_path, workdirs, out, line):
  if any("run" in workdir for workdir in workdirs):
    write_run(tmp_path / "run", steps=1)
  if "{tmp}/model" in workdirs:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llada"}')
  with pytest.raises((ValueError, OSError)) as caught:
    write_report([each.format(tmp=tmp_path) for each in workdirs], out and out.format(tmp=tmp_path), watch=False)
  assert str(caught.value) == line.format(tmp=tmp_path)
  assert not list(tmp_path.rglob("*.html"))


def test_numbers_whose_sum_is_infinite_are_none(tmp_path):
  [told] = data_of(write_run(tmp_path / "run", steps=3, more={"seconds/step": 1.7e308}))["runs"]
  assert "seconds/step" not in told["series"] and "Time" not in [tile["label"] for tile in told["tiles"]]


def test_a_run_that_is_named_twice_is_there_once(tmp_path, monkeypatch):
  run = write_run(tmp_path / "sweep" / "run", steps=1)
  write_run(tmp_path / "sweep" / "other", steps=1)
  (tmp_path / "sweep" / "a.json").mkdir()  # no comparison
  monkeypatch.chdir(run)
  assert [each["name"] for each in data_of(run.parent, run, Path("."), out=tmp_path / "all.html")["runs"]] == [
    "other", "run"]
  write_report([".", str(run)], None, watch=False)
  assert Elements((run / "report.html").read_text()).data["title"] == "run"


def test_many_paths_are_not_joined_in_all_ways(tmp_path, monkeypatch):
  tried, paths = [], [f"run{number}" for number in range(100)]
  monkeypatch.setattr("gdsd_jax.page.folders._is_folder", tried.append)
  assert [str(folder) for folder in named_folders([",".join(paths)])] == paths and len(tried) <= 1000


def test_a_missing_chart_library_is_one_line_that_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(ValueError, match=r"^report: .* not installed; pip install 'gdsd_jax\[report\]'$"):
    write_report([str(write_run(tmp_path / "run", steps=1))], None, watch=False)


@pytest.mark.slow
def test_the_command_says_where_the_page_is(tmp_path):
  pytest.importorskip("plotly")
  run = write_run(tmp_path / "run", steps=1)
  done = run_command("launch/report.py", f"--workdir={run}")
  assert done.returncode == 0 and f"REPORT {run / 'report.html'} (" in done.stdout
  done = run_command("launch/report.py", f"--workdir={tmp_path / 'none'}")
  assert done.returncode == 1 and done.stderr.splitlines() == [f"error: --workdir: {tmp_path / 'none'} does not exist"]


def test_recipes_tell_their_presets():
  assert presets("gdsd_gsm8k")[:2] == ["llada_8b", "dream_7b"] or "llada_8b_tlc" in presets("gdsd_gsm8k")
  assert presets("gdsd_math") == ["tiny", *HUB_NAMES, "tiny_block"]


def test_a_folders_name_is_nothing_that_a_terminal_obeys(tmp_path, capsys):
  run = write_run(tmp_path / "run\x1b[2J\u202e", steps=1)
  write_report([str(run)], None, watch=False)
  assert f"REPORT {tmp_path}/run\\x1b[2J\\u202e/report.html (" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------- watch


def test_a_watched_run_is_written_again_until_its_last_step(tmp_path, monkeypatch):
  monkeypatch.setattr(pages, "SECONDS", 0.05)
  run, steps = write_run(tmp_path / "run", steps=3, done=0), metrics(3)
  seen, page = [], run / "report.html"

  def train():
    for number, step in enumerate(steps[1:], 1):
      while not page.is_file() or len((data := Elements(page.read_text()).data)["runs"][0]["axes"][0]) < number:
        time.sleep(0.05)
      seen.append(data)
      with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step) + "\n")

  thread = threading.Thread(target=train)
  thread.start()
  write_report([str(run)], None, watch=True)
  thread.join()
  assert all(data["refresh"] == 0.05 for data in seen)
  data = Elements(page.read_text()).data
  assert data["refresh"] is None and data["runs"][0]["axes"][0] == [0, 1, 2, 3]


def test_a_watched_folder_that_is_away_for_a_while_is_waited_for_and_told_once(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(pages, "SECONDS", 0.0)
  run, looks, seen = write_run(tmp_path / "run", steps=3, done=2), [], pages._seen

  def look(folders):
    looks.append(run.is_dir())
    if len(looks) in (2, 6):
      run.rename(tmp_path / "away")
    if len(looks) in (5, 7):
      (tmp_path / "away").rename(run)
    if len(looks) == 8:
      write_run(run, steps=3)
    return seen(folders)

  monkeypatch.setattr(pages, "_seen", look)
  write_report([str(run)], None, watch=True)
  away = f"--workdir: {run} does not exist; the page is written again when that is over"
  assert looks == [True, True, False, False, False, True, False, True] and capsys.readouterr().out.count(away) == 2
  assert Elements((run / "report.html").read_text()).data["runs"][0]["axes"][0] == [0, 1, 2, 3]
