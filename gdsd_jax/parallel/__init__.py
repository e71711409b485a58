from gdsd_jax.parallel.absent_tpu import hide_absent_tpu

hide_absent_tpu()  # everything of ours that uses devices imports from here
