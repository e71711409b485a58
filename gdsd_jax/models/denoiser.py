"""The pure-functional denoiser: `apply(params, tokens) -> logits`, parameters as a plain nested dict of arrays."""

import dataclasses
import functools
import itertools

from flax.traverse_util import flatten_dict, unflatten_dict
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gdsd_jax.checks import require, require_one_of
from gdsd_jax.models.attention import BlockCausal
from gdsd_jax.models.attention_kernels import padding
from gdsd_jax.models.config import DenoiserConfig
from gdsd_jax.models.copies import Copies
from gdsd_jax.models.gradient_sums import of_layer, split_sums, summed_into
from gdsd_jax.models.last_layer import outputs_of_window
from gdsd_jax.models.lm_head import LMHead
from gdsd_jax.models.lora import LoraConfig
from gdsd_jax.models.quantised import dequantised, quantise, quantised_weights, QuantizeConfig
from gdsd_jax.models.remat import named_input, REMAT, rematerialised
from gdsd_jax.models.transformer import block, Context, KeysAndValues, Layer, rms_norm
from gdsd_jax.models.weights import of_layers, of_stack, stacks, Weight, weights_of
from gdsd_jax.models.windows import window_of
from gdsd_jax.parallel.mesh import constrain, CONTEXT, EXPERT, gather_over_fsdp, is_quantised, rows_axis, split_into

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """A denoiser without its weights: pure functions of `params`. Hashable: it can be a static argument of `jax.jit`."""

  config: DenoiserConfig
  # The matrix products' ("float32" or "bfloat16"), to which weights are cast where they are used. Norms, rotary
  # positions, softmax and logits are float32 always.
  dtype: str = "float32"
  param_dtype: str = "float32"  # as `init` makes the parameters and files are read; an adapter's are float32 always
  # What the backward pass computes again of a block: "none" keeps all activations, "products" those of products with
  # weights, "full" only the block's input, and "offload" that in the host's memory.
  remat: str = "none"
  lora: LoraConfig | None = None  # the adapter, entry "lora" of the parameters; those without it give the base model
  mesh: Mesh | None = None  # that the parameters lie on, for the layout of activations; None leaves it to the compiler
  # Whether training moves the routers of experts. Biases that choose experts have no gradient either way.
  trains_routers: bool = True
  source: str | None = dataclasses.field(default=None, compare=False)  # folder that it was loaded from
  quantize: QuantizeConfig | None = None  # how the base is quantised, which is then frozen; None: it is not
  # How many tokens of a chip go through a layer's MLP, or experts, at a time; their activations are computed again in
  # the backward pass, without `remat`, too. None: all tokens at once.
  mlp_tokens: int | None = None

  def __post_init__(self):
    for name, known in (("dtype", DTYPES), ("param_dtype", DTYPES), ("remat", REMAT)):
      require_one_of(f"model.{name}", getattr(self, name), known)
    require(self.mlp_tokens is None or self.mlp_tokens >= 1 and self.remat != "products", "model.mlp_tokens",
            f"{self.mlp_tokens} must be at least 1, and model.remat not 'products', which keeps those of all tokens")
    # Which says whether adapter and blocks fit.
    quantised_weights(weights_of(self.config, self.lora), self.quantize, self.mesh)
    has_experts = self.config.experts is not None or self.mesh is None or EXPERT not in self.mesh.shape
    require(has_experts, f"mesh.{EXPERT}", "must be 1 for a model without experts")

  def _tree(self, leaf):
    """The parameters' tree with leaf(weight) for each `Weight` of the network, two in a quantised one."""
    weights = quantised_weights(weights_of(self.config, self.lora), self.quantize)
    is_weight = lambda node: isinstance(node, Weight)
    leaves = {path: jax.tree.map(leaf, weight, is_leaf=is_weight) for path, weight in weights.items()}
    return unflatten_dict(leaves, sep=".")

  def init(self, key):
    """Freshly initialised parameters from a random key."""
    keys, quantize = map(lambda number: jax.random.fold_in(key, number), itertools.count()), self.quantize
    whole = dataclasses.replace(self, quantize=None)
    params = whole._tree(lambda weight: weight.initializer(next(keys), weight.shape, weight.dtype or self.param_dtype))
    if quantize is None:
      return params
    flat = flatten_dict(params, sep=".")
    flat |= {path: quantise(path, leaf, quantize) for path, leaf in flat.items() if quantize.covers(path)}
    return unflatten_dict(flat, sep=".")

  def abstract_params(self):
    """The parameters' tree with a `jax.ShapeDtypeStruct` at each leaf."""
    return self._tree(lambda weight: jax.ShapeDtypeStruct(weight.shape, weight.dtype or self.param_dtype))

  def logical_axes(self):
    """The parameters' tree with a tuple of logical axis names at each leaf (see `parallel/mesh.py`)."""
    return self._tree(lambda weight: weight.axes)

  def cast(self, params):
    """Parameters in the dtype that products take them in, once, where every pass would cast them: the same results.

    Norms and routers stay as they are.
    """
    stays = lambda name: name.endswith("norm") or name.startswith("router")
    cast = lambda path, leaf: leaf if stays(path[-1].key) else leaf.astype(self.dtype)
    return jax.tree_util.tree_map_with_path(cast, params, is_leaf=is_quantised)

  def apply(self, params, tokens, attention_mask=None):
    """Logits of every position, aligned: logits[b, i] predicts token i.

    Args:
      params: parameters of this denoiser.
      tokens: int[B, T], masked positions holding `config.mask_token_id`.
      attention_mask: bool or int[B, T], zero at padding; None when there is none.

    Returns:
      float32[B, T, V].
    """
    head, hidden = self.head(params).whole(self.hidden(params, tokens, attention_mask))
    return head.logits(hidden)

  def head(self, params) -> LMHead:
    """The LM head, for what can do with a chunk of the vocabulary at a time."""
    weight = params["embedding" if self.config.tied_head else "head"]
    return LMHead(weight, self.config.tied_head or is_quantised(weight), self.mesh)

  def hidden(self, params, tokens, attention_mask=None, dropout_key=None):
    """Hidden states, aligned: position i's predicts token i. Arguments are those of `apply`.

    With a random key, the adapter's dropout takes part, for training. Returns [B, T, D] in the denoiser's dtype; at
    padding positions, which nobody attends to, the values mean nothing.
    """
    x, _ = self._whole(params, tokens, attention_mask, dropout_key)
    return self._aligned(params, x)

  def hidden_and_load(self, params, tokens, attention_mask=None, dropout_key=None):
    """As `hidden`, of a model of experts: ([B, T, D], `Load` of the layers that have them by the tokens attended to).
    """
    x, load = self._whole(params, tokens, attention_mask, dropout_key, with_load=True)
    return self._aligned(params, x), load

  def hidden_of_copies(self, params, copies: Copies, dropout_key=None, with_load: bool = False):
    """Hidden states of noised copies of completions, [B, C, L, D], each block after clean ones, all in one pass.

    `copies` are made by `side_by_side`, for a model that attends from block to block; the rest is as in `hidden`, or
    `hidden_and_load`, whose load is that by clean tokens and copies together.
    """
    context = Context(self.config, self.lora, self.mesh, copies.positions, copies.mask, copies.blocks,
                      with_load=with_load, mlp_tokens=self.mlp_tokens)
    x, load = self._blocks(params, copies.tokens, context, dropout_key)
    hidden = constrain(copies.of_completions(context.whole(x)), self.mesh, "batch", None, "tokens", None)
    hidden = rms_norm(hidden, params["final_norm"], self.config.norm_epsilon)
    return (hidden, load) if with_load else hidden

  def hidden_and_cache(self, params, tokens, attention_mask=None):
    """As `hidden`, without dropout: ([B, T, D], KeysAndValues [layers, B, T, K, H]), for `window` to go on from."""
    x, cache = self._whole(params, tokens, attention_mask, keep=True)
    return self._aligned(params, x), self.laid_out(cache)

  def window(self, params, tokens, start, width: int, cache: KeysAndValues, attention_mask=None):
    """Hidden states of a part of the sequence, at the cost of that part; exact if nothing else changed since `cache`.

    Args:
      params, tokens, attention_mask: as in `apply`; of the tokens only the window's are read, and the one before.
      start: first position of the window, int or int[], or of each row's, int[B]; here at least 1 where the output is
        shifted.
      width: tokens of the window; start + width is at most T.
      cache: what a pass over the whole sequence left; its entries for the window's own tokens are not used.

    Returns:
      [B, width, D], aligned.
    """
    x, _ = self._part(params, tokens, *self._read_of(start, width), cache, attention_mask)
    return rms_norm(x[:, :width], params["final_norm"], self.config.norm_epsilon)

  def hidden_of_window(self, params, tokens, start, width: int, attention_mask=None):
    """As `hidden`, without dropout, of a part of the sequence: [B, width, D]; `start` and `width` as in `window`."""
    if self.token_parts > 1 or self.config.block_length is not None:
      return window_of(self.hidden(params, tokens, attention_mask), start, width)
    first, count = self._read_of(start, width)
    context, count = self._context(tokens, attention_mask), min(count, tokens.shape[1])
    x = self._embedded(params, tokens, context)
    x = outputs_of_window(x, params, self.logical_axes(), jnp.maximum(first, 0), count, context)
    if self.config.shifted_output:  # a window may begin with the first token, before which is none
      begins = jnp.reshape(jnp.asarray(start) == 0, (-1, 1, 1))
      x = jnp.where(begins, jnp.concatenate([x[:, :1], x[:, :-1]], axis=1), x)
    return rms_norm(x[:, :width], params["final_norm"], self.config.norm_epsilon)

  def _read_of(self, start, width: int):
    """(first, count) of the outputs that predict a window's tokens, where the token before predicts a token."""
    return (start - 1, width + 1) if self.config.shifted_output else (start, width)

  def window_and_cache(self, params, tokens, start, width: int, cache: KeysAndValues, attention_mask=None):
    """As `window`, the output not shifted: ([B, width, D], the cache with keys and values of the window's tokens)."""
    x, cache = self._part(params, tokens, start, width, cache, attention_mask, keep=True)
    return rms_norm(x, params["final_norm"], self.config.norm_epsilon), self.laid_out(cache)

  def laid_out(self, cache: KeysAndValues) -> KeysAndValues:
    """A cache, laid out over the mesh."""
    layout = lambda x: constrain(x, self.mesh, "layers", rows_axis(x.shape[1], self.mesh), None, "kv_heads", "head_dim")
    return jax.tree.map(layout, cache)

  @property
  def token_parts(self) -> int:
    """Into how many parts the tokens of a sequence are split, but for passes that leave a cache or begin with one."""
    return split_into("tokens", self.mesh)

  def _part(self, params, tokens, first, count: int, cache: KeysAndValues, attention_mask, keep: bool = False):
    """A pass over a part of the sequence, as `_blocks`."""
    within = lambda x: window_of(x, first, count)
    context = self._context(tokens, attention_mask)
    positions = within(context.positions)
    if context.blocks is not None:
      context = context._replace(blocks=context.blocks._replace(query=positions, key=context.positions))
    context = context._replace(positions=positions, start=first, axes=(rows_axis(len(tokens), self.mesh), None))
    return self._blocks(params, within(tokens), context, cache=cache, keep=keep)

  def _context(self, tokens, attention_mask) -> Context:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    if attention_mask is not None and self.config.positions_skip_padding:
      positions = jnp.maximum(jnp.cumsum(attention_mask.astype(jnp.int32), axis=1) - 1, 0)
    mask = None if attention_mask is None else attention_mask.astype(bool)
    blocks = None if self.config.block_length is None else BlockCausal(self.config.block_length)
    padded = None if mask is None else padding(mask)  # once, and not in each layer
    return Context(self.config, self.lora, self.mesh, positions, mask, blocks, padding=padded,
                   mlp_tokens=self.mlp_tokens)

  def _whole(self, params, tokens, attention_mask, dropout_key=None, keep: bool = False, with_load: bool = False):
    """A pass over the whole sequence, as `_blocks`; one that leaves a cache splits the batch, and not the tokens."""
    axes = (rows_axis(len(tokens), self.mesh), None) if keep else ("batch", "tokens")
    context = lambda tokens, mask: self._context(tokens, mask)._replace(with_load=with_load, axes=axes)
    if self.config.block_length is None or attention_mask is None:
      return self._blocks(params, tokens, context(tokens, attention_mask), dropout_key, keep=keep)
    # With padding last, blocks begin at the same places in every sequence, as kernels have them.
    order = jnp.argsort(~attention_mask.astype(bool), axis=1, stable=True)
    back = jnp.argsort(order, axis=1)
    tokens, mask = (jnp.take_along_axis(x, order, axis=1) for x in (tokens, attention_mask))
    of_pass = context(tokens, mask)
    x, told = self._blocks(params, tokens, of_pass, dropout_key, keep=keep)
    in_place = lambda x: jnp.take_along_axis(x, back.reshape(*back.shape, *[1] * (x.ndim - 2)), axis=1)
    return in_place(of_pass.whole(x)), told if with_load else jax.tree.map(jax.vmap(in_place), told)

  def _blocks(self, params, tokens, context: Context, dropout_key=None, cache=None, keep: bool = False):
    """int[B, T] tokens through embedding and blocks: ([B, T, D], KeysAndValues of all layers if `keep`).

    In the place of these is the `Load` of layers that have experts, where the context asks for it. The
    weights of a stack of blocks are scanned over, so that compile time does not grow with depth.
    """
    adapted, axes, dropout_keys = "lora" in params, self.logical_axes(), None
    if dropout_key is not None and adapted and self.lora.dropout > 0:
      dropout_keys = jax.random.split(dropout_key, self.config.num_layers)

    def apply_block(axes, carry, scanned):
      (x, carried), (layer, weights, layer_key, cached) = carry, scanned
      x = named_input(x)
      weights, carried = of_layer(weights, carried, layer)
      weights, x = gather_over_fsdp(weights, axes, x, self.mesh)
      x, read, load = block(x, Layer(*weights, layer_key, cached), context)
      return (x, carried), load if context.with_load else read if keep else None

    x, kept = self._embedded(params, tokens, context), []
    for stack, layers in stacks(self.config).items():
      weights, sums = split_sums(of_stack(params, stack, adapted))
      (x, carried), told = jax.lax.scan(
        rematerialised(functools.partial(apply_block, of_stack(axes, stack, adapted)), self.remat),
        (x, {place: summed.weight for place, summed in sums.items()}),
        (jnp.arange(len(layers)) if sums else None, weights, *of_layers((dropout_keys, cache), layers)),
      )
      x = summed_into(x, carried, sums)
      kept += [] if told is None else [told]
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept) if len(kept) > 1 else next(iter(kept), None)

  def _embedded(self, params, tokens, context: Context):
    """int[B, T] tokens as vectors [B, T, D], laid out as the context says."""
    parts = split_into(context.axes[1], self.mesh)
    require(tokens.shape[1] % parts == 0, f"mesh.{CONTEXT}", f"{parts} does not divide sequences of {tokens.shape[1]}"
            " tokens, prompt and completion together")
    # Rows are looked up where their share of the embedding lies; then shares are exchanged for sequences.
    tokens = constrain(tokens, self.mesh, "batch_over_data", context.axes[1])
    rows = jax.tree.map(lambda part: part[tokens], params["embedding"])
    embedded = dequantised(rows).astype(self.dtype)
    embedded = constrain(embedded, self.mesh, "batch_over_data", context.axes[1], "embed")
    return context.constrain(embedded)

  def _aligned(self, params, x):
    """The blocks' output x [B, T, D] as hidden states: position i's predicts token i."""
    x = rms_norm(x, params["final_norm"], self.config.norm_epsilon)
    # Nothing comes before the first token; its prediction is that of the second, as in Dream's own sampler.
    return jnp.concatenate([x[:, :1], x[:, :-1]], axis=1) if self.config.shifted_output else x
