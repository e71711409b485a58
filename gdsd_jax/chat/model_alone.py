"""What a model is sampled by that --model names without a recipe; chat/config.py makes it fit the model."""

from gdsd_jax.runs.config_dict import base_config


def get_config():
  config = base_config()
  config.sampler.temperature = 0.0  # as LLaDA's own chat samples; Dream's is set by its family
  return config
