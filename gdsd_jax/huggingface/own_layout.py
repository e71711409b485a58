"""Which layout a model has; what one of the user's own answers is checked, and told with its file and line."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from gdsd_jax import own_code
from gdsd_jax.checks import require
from gdsd_jax.huggingface import eurobert
from gdsd_jax.huggingface.families import FAMILIES
from gdsd_jax.huggingface.layouts import Layout
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.weights import canonical, weights_of

MODEL_TYPES = {**FAMILIES, eurobert.MODEL_TYPE: eurobert.EUROBERT}  # of config.json, in small letters, -> its layout
LAYOUTS = ("transformers", "published")  # how models may be written, see `DenoiserConfig.layout`


def layout_of(family: str, layout: str = "published") -> Layout:
  """The layout of a family: ours by its name, in either of LAYOUTS, the user's own by FILE.py:NAME.

  Raises ValueError or OSError, one line, where the user's own cannot be had.
  """
  if not own_code.is_own(family):
    return eurobert.EUROBERT if layout == "transformers" else FAMILIES[family]
  found = own_code.load(family, "model.layout")
  try:
    layout = found() if isinstance(found, type) else found
  except own_code.RAISED as error:  # the user's own
    raise ValueError(f"model.layout: {own_code.described_briefly(error, found)}") from error
  require(isinstance(layout, Layout), "model.layout", f"{family} must be a gdsd_jax.Layout, not {found!r:.80}")
  return _OwnLayout(family, layout)


@dataclasses.dataclass(frozen=True)
class _OwnLayout(Layout):
  """Stands for a layout of the user's. Its configs are of the family that is called as the layout is."""

  family: str
  layout: Layout

  @property
  def weight_names(self) -> Mapping[str, str]:
    return self.layout.weight_names

  def parse_config(self, fields: Mapping[str, Any]) -> DenoiserConfig:
    """Raises ValueError where the layout could not save what it reads, too."""
    config = self._parse(fields)
    written = self.format_config(config, "float32")
    again = self._parse(written)
    lost = [name for name, value in vars(config).items() if getattr(again, name) != value]
    require(not lost, "model.layout", f"{self._at('format_config')} has no place for this model's {', '.join(lost)}")
    names = getattr(self.layout, "weight_names", None)
    require(isinstance(names, Mapping), "model.layout", f"{self._at()} must have `weight_names`, a dict of names")
    leaves = list(dict.fromkeys(map(canonical, weights_of(config, None))))
    lacking = [leaf for leaf in leaves if not isinstance(names.get(leaf), str)]
    require(not lacking, "model.layout", f"{self._at()} names no weight for {', '.join(lacking)} in `weight_names`")
    stacked = [leaf for leaf in leaves if leaf.startswith("blocks.") and "{layer}" not in names[leaf]]
    require(not stacked, "model.layout", f"{self._at()}: the names of {', '.join(stacked)} must hold {{layer}}")
    return config

  def format_config(self, config: DenoiserConfig, dtype: str) -> dict[str, Any]:
    fields = self._call("format_config", config, dtype)
    said = f"{self._at('format_config')} must give a dict, not {fields!r:.80}"
    require(isinstance(fields, dict), "model.layout", said)
    return fields

  def _parse(self, fields: Mapping[str, Any]) -> DenoiserConfig:
    config = self._call("parse_config", fields)
    require(isinstance(config, DenoiserConfig), "model.layout",
            f"{self._at('parse_config')} must give a gdsd_jax.DenoiserConfig, not {config!r:.80}")
    return dataclasses.replace(config, family=self.family)

  def _call(self, method: str, *arguments):
    try:
      return getattr(self.layout, method)(*arguments)
    except own_code.RAISED as error:  # the user's own
      cause = own_code.described_briefly(error, getattr(type(self.layout), method))
      raise ValueError(f"model.layout: {cause}") from error

  def _at(self, method: str = "") -> str:
    thing = getattr(type(self.layout), method) if method else type(self.layout)
    return f"{own_code.at(thing)}{thing.__qualname__}"
