"""Charades-STA: temporal grounding in homes."""

from videoauto_jax.eval.benchmarks.base import register, results
from videoauto_jax.eval.benchmarks.spans import Grounding


@register
class Charades(Grounding):
    """One segment per caption."""

    name, title, repo, folder = "charades", "Charades-STA", "lmms-lab/charades_sta", "charades_sta"
    videos = "Charades_v1_480"
    published = results(52.9, 60.0, 44.6, 63.7)
