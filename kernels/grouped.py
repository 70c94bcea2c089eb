"""Matrix products of groups of rows with a matrix per group: what a mixture of experts needs.

`jax.lax.ragged_dot` is that on TPU. Elsewhere XLA lowers it to a product of all rows with all matrices and a mask, so
there rows go through in blocks that belong to one group each: cost is that of the rows, rounded up to blocks.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LARGEST_BLOCK = 128
SMALLEST_BLOCK = 8


@jax.custom_vjp
def grouped_matmul(
    x: Float[Array, "M D"], kernels: Float[Array, "E D F"], sizes: Int[Array, "E"]
) -> Float[Array, "M F"]:
    """Row `i` times the matrix of its group, float32 sums, in x's dtype.

    Args:
        x: rows, those of group 0 first, then those of group 1, …
        kernels: one matrix per group.
        sizes: rows of each group; rows beyond their sum give 0.
    """
    return jax.lax.platform_dependent(x, kernels, sizes, tpu=by_ragged_dot, default=by_blocks)


def _forward(x: Array, kernels: Array, sizes: Array) -> tuple[Array, tuple]:
    return grouped_matmul(x, kernels, sizes), (x, kernels, sizes)


def _backward(saved: tuple, cotangent: Float[Array, "M F"]) -> tuple[Array, Array, None]:
    x, kernels, sizes = saved
    to_x = grouped_matmul(cotangent, jnp.swapaxes(kernels, 1, 2), sizes)
    to_kernels = jax.lax.platform_dependent(x, cotangent, sizes, tpu=outer_by_ragged_dot, default=outer_by_blocks)
    return to_x.astype(x.dtype), to_kernels.astype(kernels.dtype), None


grouped_matmul.defvjp(_forward, _backward)


def by_ragged_dot(x: Array, kernels: Array, sizes: Array) -> Array:
    """`grouped_matmul` as XLA's own instruction."""
    out = jax.lax.ragged_dot(x, kernels, sizes, preferred_element_type=jnp.float32).astype(x.dtype)
    return jnp.where((jnp.arange(len(x)) < jnp.sum(sizes))[:, None], out, 0)


def outer_by_ragged_dot(x: Float[Array, "M D"], y: Float[Array, "M F"], sizes: Int[Array, "E"]) -> Array:
    """Per group the sum over its rows of the outer products of x and y, float32 `[E, D, F]`."""
    dims = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
    return jax.lax.ragged_dot_general(x, y, sizes, dims, preferred_element_type=jnp.float32)


def by_blocks(x: Array, kernels: Array, sizes: Array) -> Array:
    """`grouped_matmul` block by block; blocks that no group fills are skipped."""
    blocks = _Blocks(len(x), sizes)

    def one(_: None, block: tuple[Array, Array, Array]) -> tuple[None, Array]:
        rows, group, used = block
        product = lambda: jnp.matmul(rows, kernels[group], preferred_element_type=jnp.float32).astype(x.dtype)  # noqa: E731
        return None, jax.lax.cond(used, product, lambda: jnp.zeros((len(rows), kernels.shape[2]), x.dtype))

    _, out = jax.lax.scan(one, None, (blocks.cut(x), blocks.group, blocks.used))
    return blocks.join(out)


def outer_by_blocks(x: Array, y: Array, sizes: Array) -> Array:
    """`outer_by_ragged_dot` block by block."""
    blocks = _Blocks(len(x), sizes)

    def one(total: Array, block: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        left, right, group, used = block
        add = lambda: total.at[group].add(jnp.matmul(left.T, right, preferred_element_type=jnp.float32))  # noqa: E731
        return jax.lax.cond(used, add, lambda: total), None

    start = jnp.zeros((len(sizes), x.shape[1], y.shape[1]), jnp.float32)
    return jax.lax.scan(one, start, (blocks.cut(x), blocks.cut(y), blocks.group, blocks.used))[0]


class _Blocks:
    """Rows of groups cut into blocks of one group each.

    Attributes:
        group: of each block.
        used: whether the block holds a row.
    """

    def __init__(self, rows: int, sizes: Int[Array, "E"]):
        groups = len(sizes)
        self.size = _block_size(rows, groups)
        count = -(-rows // self.size) + groups
        ends, needed = jnp.cumsum(sizes), -(-sizes // self.size)
        block_ends = jnp.cumsum(needed)
        number = jnp.arange(count)
        self.group = jnp.minimum(jnp.searchsorted(block_ends, number, side="right"), groups - 1)
        self.used = number < block_ends[-1]
        starts, block_starts = ends - sizes, block_ends - needed
        first = starts[self.group] + (number - block_starts[self.group]) * self.size
        row = first[:, None] + jnp.arange(self.size)
        self._row, self._filled = row, (row < ends[self.group][:, None]) & self.used[:, None]
        index = jnp.arange(rows)
        group = jnp.minimum(jnp.searchsorted(ends, index, side="right"), groups - 1)
        self._place = block_starts[group] * self.size + index - starts[group]
        self._inside = index < ends[-1]

    def cut(self, x: Float[Array, "M D"]) -> Float[Array, "C b D"]:
        """Blocks of rows, filled up with zeros."""
        return jnp.where(self._filled[..., None], x[jnp.minimum(self._row, len(x) - 1)], 0)

    def join(self, blocks: Float[Array, "C b F"]) -> Float[Array, "M F"]:
        """Rows from their blocks; 0 beyond the last group."""
        flat = blocks.reshape(-1, blocks.shape[-1])
        return jnp.where(self._inside[:, None], flat[jnp.minimum(self._place, len(flat) - 1)], 0)


def _block_size(rows: int, groups: int) -> int:
    """About the rows of an average group: smaller blocks read a matrix more often, larger ones hold more padding."""
    average = 1 << max(rows // groups, 1).bit_length() - 1
    return min(max(average, SMALLEST_BLOCK), LARGEST_BLOCK)
