"""What quantising costs: a model's predictions in 8 and 4 bits beside those of its own weights, on random texts.

  python tests/check_quantised.py MODEL [MODEL …] [--block_size=N]

A line for each model and kind: the mean Kullback-Leibler divergence from the whole model's distribution, in nats a
token; the share of tokens with the same prediction; and the error of log-probabilities, as a share of their spread.
Half of each text is masked. LM head and embedding are quantised, too.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import gdsd_jax
from gdsd_jax.models.quantised import KINDS, QuantizeConfig


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("models", nargs="+")
  parser.add_argument("--block_size", type=int, default=64)
  given = parser.parse_args()
  logits_of = jax.jit(gdsd_jax.Denoiser.apply, static_argnums=0)
  for model in given.models:
    denoiser, params = gdsd_jax.load_pretrained(model)
    tokens = np.random.default_rng(0).integers(denoiser.config.vocab_size, size=(8, 64))
    tokens[:, 32:] = denoiser.config.mask_token_id
    logits = logits_of(denoiser, params, tokens)
    for kind in KINDS:
      quantize = QuantizeConfig(kind, given.block_size, head=True, embedding=True)
      quantised = logits_of(*gdsd_jax.load_pretrained(model, quantize=quantize), tokens)
      before, after = jax.nn.log_softmax(logits), jax.nn.log_softmax(quantised)
      divergence = jnp.mean(jnp.sum(jnp.exp(before) * (before - after), axis=-1))
      same = jnp.mean(jnp.argmax(logits, axis=-1) == jnp.argmax(quantised, axis=-1))
      error = jnp.sqrt(jnp.mean(jnp.square(after - before))) / jnp.std(before)
      print(f"{model} {kind}: {divergence:.2g} nats a token, {same:.1%} the same prediction, error {error:.1%}",
            flush=True)


if __name__ == "__main__":
  main()
