"""ActivityNet temporal video grounding."""

from videoauto_jax.eval.benchmarks.base import register, results
from videoauto_jax.eval.benchmarks.spans import Grounding


@register
class ActivityNet(Grounding):
    """One segment per caption."""

    name, title, repo, folder = "activitynet_tvg", "ActivityNet-TVG", "sming256/ActivityNetTVG", "activitynet"
    videos = "val2_videos"
    published = results(26.9, 47.6, 36.1, 51.9)
