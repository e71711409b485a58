"""Makes the embedded model, gdsd_jax/models/assets/tiny."""

import ml_collections


def get_config():
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = dict(name="arithmetic", slips=0.1)
  config.model = dict(
    vocab_size=400, hidden_size=96, num_layers=3, num_heads=4, num_kv_heads=4, mlp_size=256,
    rope_theta=10000.0, norm_epsilon=1e-5, max_positions=256,
  )
  config.sampler = dict(completion_length=24, steps=12, block_length=8, temperature=1.0)
  config.max_prompt_length = 36
  config.steps = 1500
  config.batch_size = 128
  config.eval_every = 250
  config.eval_examples = 200
  config.optimizer = dict(learning_rate=2e-3, warmup_steps=100, final_fraction=0.1, weight_decay=0.01)
  return config
