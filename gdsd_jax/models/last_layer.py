"""A pass of which only some tokens' hidden states are wanted: the last layer computes nothing else of the others.

They give it their keys and values. Its other products, of queries, output and MLP, are the window's alone, which of a
block in a long sequence is most of a layer saved.
"""

import jax

from gdsd_jax.models.transformer import attention_input, block, Context, keys_and_values, Layer
from gdsd_jax.models.weights import of_stack, stacks
from gdsd_jax.models.windows import window_of
from gdsd_jax.parallel.mesh import gather_over_fsdp


def outputs_of_window(x, params, axes, first, count: int, context: Context):
  """The last layer's outputs [B, count, D] of the tokens from `first` on, as of `window_of`.

  Args:
    x: [B, T, D], the embedded tokens.
    params, axes: a denoiser's, and their logical axes.
    context: of all tokens, which no mesh splits and which all see each other.
  """
  adapted = "lora" in params
  for stack, layers in stacks(context.config).items():

    def layer_at(number, x, stack=stack):
      own = jax.tree.map(lambda of_layers: of_layers[number], of_stack(params, stack, adapted))
      weights, x = gather_over_fsdp(own, of_stack(axes, stack, adapted), x, context.mesh)
      return Layer(*weights, dropout_key=None, cached=None), x

    def apply_layer(number, x, layer_at=layer_at):
      layer, x = layer_at(number, x)
      return block(x, layer, context)[0]

    is_last = layers.stop == context.config.num_layers
    x = jax.lax.fori_loop(0, len(layers) - is_last, apply_layer, x)
  layer, x = layer_at(len(layers) - 1, x)
  layer = layer._replace(cached=keys_and_values(attention_input(x, layer, context), layer, context))
  within = lambda x: window_of(x, first, count)
  return block(within(x), layer, context._replace(positions=within(context.positions), start=first))[0]
