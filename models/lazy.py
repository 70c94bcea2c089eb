"""Parameters that lie in files until their turn comes: what writes a model need never hold one."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class LazyParameter:
    """One parameter of a model, not in memory.

    Attributes:
        shape: of all of it, stacked layers included.
        dtype: what it stands for; `read` may give fewer bits of it.
        read: one layer of a stacked parameter by its number, or with None all of one that is not stacked.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int | None], np.ndarray]
