"""One long packed row as several that overlap, so that a mesh can split it.

A mesh splits rows, and the packed patches of a batch are one. Segments of bounded length let it be cut anywhere: each
piece takes along as much of its neighbours as a segment can reach, attends within itself, and gives back its own part.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from videoauto_jax.kernels.sharded import ROW_AXES, dividing, parts


def pieces(length: int, bound: int) -> int:
    """Into how many pieces the mesh in use had better cut a row.

    As many as its batch axes and `context` divide it into, while a piece is no shorter than a segment may be, so that
    it reaches into its direct neighbours only; 1 if what overlaps would cost more than splitting gains.

    Args:
        length: of the row.
        bound: no segment is longer than this.
    """
    mesh = jax.sharding.get_abstract_mesh()
    count = parts(mesh, dividing(mesh, ROW_AXES, length, most=length // bound))
    return count if length // count + 2 * bound < length else 1


def cut(x: Shaped[Array, "Q ..."], count: int, reach: int) -> Shaped[Array, "C W ..."]:
    """`C` pieces of a row, each with `reach` places of its neighbours on either side: `W = Q / C + 2 * reach`.

    Beyond the row's ends there is 0, which in segment ids means nothing.
    """
    rows = x.reshape(count, -1, *x.shape[1:])
    edge = jnp.zeros((1, reach, *x.shape[1:]), x.dtype)
    before = jnp.concatenate([edge, rows[:-1, -reach:]])
    after = jnp.concatenate([rows[1:, :reach], edge])
    return jnp.concatenate([before, rows, after], axis=1)


def join(pieces: Shaped[Array, "C W ..."], reach: int) -> Shaped[Array, "Q ..."]:
    """The row of which those are the pieces."""
    own = pieces[:, reach:-reach]
    return own.reshape(-1, *own.shape[2:])
