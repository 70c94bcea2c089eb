"""Evaluation: benchmarks, the runner, scores, reports."""

from videoauto_jax.eval.benchmarks import benchmark

__all__ = ["benchmark"]
