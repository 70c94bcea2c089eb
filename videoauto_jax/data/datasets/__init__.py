"""The training sets: how each one's annotations become samples."""

from videoauto_jax.data.datasets import grounding, image, plain, video  # noqa: F401  (each registers its loaders)
from videoauto_jax.data.datasets.registry import DatasetConfig, Loader, dataset, load_datasets, loaders

__all__ = ["DatasetConfig", "Loader", "dataset", "load_datasets", "loaders"]
