"""Shows a run as a page to look at: python launch/report.py --workdir=RUN [--out=FILE] [--watch].

One HTML file that needs no network: curves, evaluations, rollouts replayed as they were unmasked, settings and
environment. See docs/report.md.

  python launch/report.py --workdir=runs/gdsd_math_tiny              # writes runs/gdsd_math_tiny/report.html
  python launch/report.py --workdir=runs/a,runs/b --out=both.html   # runs beside each other; a sweep
  python launch/report.py --workdir=runs/compare_tiny                # what launch/compare.py found
"""

from absl import flags

from gdsd_jax import command

_WORKDIR = flags.DEFINE_multi_string(
  "workdir", None, "Folder of a run, a sweep or a comparison, local or gs://; several by commas, or by several flags.")
_OUT = flags.DEFINE_string("out", None, "The HTML file to write; of one folder by default report.html in it.")
_WATCH = flags.DEFINE_bool("watch", False, "Whether to write it again while a run goes on; the page follows.")


def main():
  from gdsd_jax.page.report import write_report

  write_report(_WORKDIR.value, _OUT.value, _WATCH.value)


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  command.run(main, alone=True)
