"""method_gdsd_elbo.png: what stands in for a likelihood is not the sampler's, and GDSD asks for none.

  python docs/pictures/method_gdsd_elbo.py

On the left are the 729 completions of the problem that can be written down (docs/exact_likelihood.md): the exact
log-likelihood of each under LLaDA's sampler, and the mean of the ELBO's estimates. GDSD's sums of scores are as far
from it; its loss takes them for no likelihood. On the right is the smallest problem, one masked token: what GDSD's
losses converge to, beside the closed-form teacher p exp(ψ A) / Z. Plain GDSD misses it by the order of ψ².
"""

import card
import jax
import numpy as np

from gdsd_jax.exact.enumeration import enumerate_completions
from gdsd_jax.exact.estimators import Estimators, quality
from gdsd_jax.exact.fixed_point import minimise, problem, teacher, VOCABULARY
from gdsd_jax.exact.problem import Problem

PSI = 0.3  # seven times the recipes', so that teacher and student are seen apart


def likelihoods():
  """(exact log-likelihoods, the ELBO's estimate) of every completion to one prompt, by a model of one seed."""
  enumerable = Problem()
  given = enumerable.denoiser, enumerable.pretrained(seed=0), enumerable.prompts[0], enumerable.sampler
  completions = enumerate_completions(*given)
  return completions.log_probability, Estimators(*given, completions)(jax.random.key(0))["elbo"]


def fixed_points():
  """Probabilities float64[V]: of the student before, the teacher's, of GDSD's minimiser, and of GDSD-TLC's."""
  with jax.enable_x64(True):
    logits, advantages = problem()
    minima = [minimise(logits, advantages, PSI, center_top_k)[0] for center_top_k in (None, VOCABULARY)]
    return [np.asarray(each) for each in (jax.nn.softmax(logits), teacher(logits, advantages, PSI), *minima)]


def draw_likelihoods(ax, exact, estimate):
  ax.scatter(exact, estimate.mean, s=4 + 3000 * estimate.weights, color=card.ORANGE, alpha=0.35, linewidth=0)
  low, high = min(exact.min(), estimate.mean.min()), max(exact.max(), estimate.mean.max())
  ax.plot([low, high], [low, high], color=card.INK, linewidth=1)
  found = quality(estimate, exact)
  told = f"off by {found.bias:+.2f} nats\non average, ±{found.spread:.2f}\nbetween texts".replace("-", "−")
  ax.text(0.98, 0.06, told, ha="right", transform=ax.transAxes)
  ax.set(title="An ELBO is not the\nsampler's likelihood", xlabel="exact log-likelihood", ylabel="ELBO")


def draw_fixed_points(ax, before, of_teacher, gdsd, tlc):
  ax.plot([0, 0.5], [0, 0.5], color=card.INK, linewidth=1)
  ax.plot(of_teacher, before, "o", color="#b6bcc8", markersize=9, label="student before")
  ax.plot(of_teacher, gdsd, "s", color=card.BLUE, markersize=9, label="GDSD")
  ax.plot(of_teacher, tlc, "D", color=card.GREEN, markersize=6, label="GDSD-TLC")
  ax.set(title="GDSD needs neither to\nreach its teacher", xlabel="teacher's probability", ylabel="student's")
  ax.legend(frameon=False, loc="upper left", handletextpad=0.1, title="one masked token", alignment="left")


def main():
  flags = card.arguments(__doc__, "method_gdsd_elbo.png")
  figure, (left, right) = card.card(4.6, ncols=2)
  draw_likelihoods(left, *likelihoods())
  draw_fixed_points(right, *fixed_points())
  card.save(figure, flags.out)


if __name__ == "__main__":
  main()
