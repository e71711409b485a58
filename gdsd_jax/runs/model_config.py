"""The model that a run starts from, as its recipe says it: section `model`."""

import dataclasses
from pathlib import Path

from gdsd_jax import own_code
from gdsd_jax.checks import require, require_one_of
from gdsd_jax.huggingface.folder import load_config, resolve_path
from gdsd_jax.huggingface.stated import FIELDS
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.models.quantised import QuantizeConfig
from gdsd_jax.models.remat import REMAT


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The model that a run starts from; section `model`.

  Its part `lora` has the fields of `LoraConfig` and `path`, its part `quantize` those of `QuantizeConfig`.
  """

  path: str = "tiny"  # folder, hub name, or "tiny", the embedded model
  revision: str | None = None  # branch, tag or commit of a hub model; None: its latest, which config.json then tells
  dtype: str = "float32"  # matrix products and frozen weights; trained ones are float32 always
  # What the backward pass computes again: "none" of the activations, all but "products" with weights (a quarter less to
  # compute than all, far more to keep), or the "full" pass through each block, of which the input is kept; "offload"
  # is "full" with these inputs in the host's memory, of a TPU or a GPU.
  remat: str = "full"
  # How many tokens of a chip go through a layer's MLP, or experts, at a time, so that the memory of these does not grow
  # with the batch (docs/what_fits.md); None for all at once.
  mlp_tokens: int | None = None
  # Whether all-parameter training moves the routers of experts, too. A router that moves sends tokens to other experts,
  # and scores of the same tokens apart; RL is steadier without.
  train_router: bool = False
  # One's own of a model whose config.json has a `model_type` unknown here, FILE.py:NAME (docs/own.md).
  layout: str | None = None
  # What config.json of the folder does not name, and its tokenizer's files do not tell, such as the mask token of many
  # conversions. Where they do, theirs hold, and another one is refused.
  mask_token_id: int | None = None
  eos_token_id: int | None = None  # the same of the end of text
  block_length: int | None = None  # and of a block-causal model's blocks, which the sampler's must equal
  lora: LoraConfig | None = None  # None, which recipes say by rank 0: no adapter, all parameters are trained
  lora_path: str | None = None  # PEFT folder or hub name to start from; rank and alpha must be its own
  quantize: QuantizeConfig | None = None  # None, which recipes say by no kind: the weights in `dtype`

  def __post_init__(self):
    for field, least in {"mask_token_id": 0, "eos_token_id": 0, "block_length": 1, "mlp_tokens": 1}.items():
      value = getattr(self, field)
      require(value is None or type(value) is int and value >= least, f"model.{field}",
              f"must be an integer of at least {least}, not {value!r}")
    require_one_of("model.remat", self.remat, REMAT)
    require(self.layout is None or own_code.is_own(self.layout), "model.layout",
            f"{self.layout!r} must be FILE.py:NAME or PACKAGE.MODULE:NAME; ours are known by config.json's model_type")
    require(not (self.train_router and self.lora), "model.train_router",
            "needs model.lora.rank=0: an adapter leaves the base's routers as they are")
    require(self.lora_path != "", "model.lora.path", "is empty")  # an unset variable of the shell, say
    require(self.lora is not None or not self.lora_path, "model.lora.path", "needs model.lora.rank > 0")

  def check_trained(self) -> None:
    """Raises ValueError where a run cannot train what it is told to."""
    require(self.quantize is None or self.lora is not None, "model.quantize.kind",
            "needs model.lora.rank > 0: quantised weights are frozen, and only an adapter over them is trained")

  @property
  def folder(self) -> Path:
    """Where its files are, downloaded if they are the hub's. FileNotFoundError or ValueError, one line."""
    return resolve_path(self.path, self.revision)

  @property
  def stated(self) -> dict[str, int]:
    """What is said of the model beside its config.json, in the words of that file."""
    said = {name: getattr(self, field, None) for name, field in FIELDS.items()}
    return {name: value for name, value in said.items() if value is not None}

  @property
  def architecture(self) -> DenoiserConfig:
    """What its config.json says, and what is stated beside it. Raises as `load_config`."""
    return load_config(self.folder, self.layout, self.stated)

  @property
  def lora_folder(self) -> Path | None:
    """Where the adapter's files are, if it starts from one. Raises as `folder`."""
    return resolve_path(self.lora_path, field="model.lora.path") if self.lora_path else None
