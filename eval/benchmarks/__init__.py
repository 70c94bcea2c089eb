"""The paper's nine benchmarks. A tenth is one more file; one's own questions need none (docs/evaluation.md)."""

from videoauto_jax.eval.benchmarks import (  # noqa: F401  (each registers itself)
    activitynet,
    charades,
    longvideobench,
    mmvu,
    mvbench,
    mvp,
    nextgqa,
    video_mmmu,
    videomme,
)
from videoauto_jax.eval.benchmarks.base import MODELS, Benchmark, Score, benchmark, known_benchmarks, register

__all__ = ["MODELS", "Benchmark", "Score", "benchmark", "known_benchmarks", "register"]
