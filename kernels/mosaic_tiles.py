"""What the Hopper kernels share: tile sizes, the plan of blocks to visit, and products on tensor cores.

A warpgroup is 128 threads that issue `wgmma` together, for 64 rows at a time. A kernel here has one warpgroup that only
loads (TMA, asynchronous, through a ring of stages) and two that only compute.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from videoauto_jax.kernels.mask import Mask

COMPUTE = 2
"""Compute warpgroups: two, so that one's softmax runs on the ordinary cores while the other's products run."""
ROWS = 64
"""Rows of a warpgroup: the height of one `wgmma`."""
TILE = COMPUTE * ROWS
"""Rows of a thread block, and the number to a multiple of which lengths are padded."""
LOG2_E = 1.4426950408889634
LEAST = -1e30
"""Below every score. Finite: a maximum of -inf would make `exp2(-inf + inf)` of a row that has seen nothing yet."""
MOST = 1e30
"""Log-sum-exp of a query that sees nothing, in the backward pass: `exp2(score - MOST)` is 0; -inf would give inf."""

PLAN = 4
"""Numbers per tile in a plan: first block, first whole block, end of whole blocks, end."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """The steps of one tile over its blocks: first those that need no mask, then those at the edges that do.

    Their order is free, since a sum of partial attentions is; two loops with one body each stay small in registers.

    Attributes:
        first, whole_first, whole_end, end: see `PLAN`.
        heads: each block is visited once per head, heads changing fastest.
    """

    first: Array
    whole_first: Array
    whole_end: Array
    end: Array
    heads: int = 1

    @property
    def whole(self) -> Array:
        """Number of steps without a mask."""
        return (self.whole_end - self.whole_first) * self.heads

    @property
    def steps(self) -> Array:
        """Number of all steps."""
        return (self.end - self.first) * self.heads

    def block(self, step: Array) -> Array:
        """Which block a step takes."""
        visit = lax.div(step, jnp.int32(self.heads))
        edge = visit - (self.whole_end - self.whole_first)
        before = self.whole_first - self.first
        edge_block = jnp.where(edge < before, self.first + edge, self.whole_end + edge - before)
        return jnp.where(edge < 0, self.whole_first + visit, edge_block)

    def head(self, step: Array) -> Array:
        """Which of the heads a step takes."""
        return lax.rem(step, jnp.int32(self.heads))

    def run(self, step: Callable[[Array, Any, bool], Any], carry: Any) -> Any:
        """All steps, `step(index, carry, masked)`."""
        carry = lax.fori_loop(0, self.whole, functools.partial(step, masked=False), carry)
        return lax.fori_loop(self.whole, self.steps, functools.partial(step, masked=True), carry)


def plan_queries(mask: Mask, block: int) -> Int[Array, "B tiles 4"]:
    """For each tile of `TILE` queries, which blocks of keys it visits.

    Visited are the blocks between the lowest start and the highest stop of the tile's ranges; whole are those inside
    every query's range. Padded segments, other packed documents and the future are never loaded.
    """
    tiles = lambda x: x.reshape(x.shape[0], -1, TILE)  # noqa: E731
    start, stop = tiles(mask.start), tiles(mask.stop)
    some = stop > start
    lowest = jnp.min(jnp.where(some, start, jnp.iinfo(jnp.int32).max), axis=-1)
    end = -(-jnp.max(jnp.where(some, stop, 0), axis=-1) // block)
    first = jnp.minimum(lowest // block, end)
    whole_first = jnp.clip(-(-jnp.max(start, axis=-1) // block), first, end)
    whole_end = jnp.clip(jnp.min(stop, axis=-1) // block, whole_first, end)
    return jnp.stack([first, whole_first, whole_end, end], axis=-1).astype(jnp.int32)


def plan_keys(mask: Mask, block: int, keys: int) -> Int[Array, "B tiles 4"]:
    """For each tile of `TILE` keys, which blocks of `block` queries see it: the transpose of `plan_queries`.

    Ranges of any kind need not be seen by one run of blocks: the run from the first to the last is visited, and of the
    blocks that see every key of the tile the first uninterrupted run goes without a mask.
    """
    blocks = lambda x: x.reshape(x.shape[0], 1, -1, block)  # noqa: E731
    start, stop = blocks(mask.start), blocks(mask.stop)
    low = jnp.arange(0, keys, TILE, dtype=jnp.int32)[None, :, None]
    lowest = jnp.min(jnp.where(stop > start, start, jnp.iinfo(jnp.int32).max), axis=-1)
    touched = (lowest < low + TILE) & (jnp.max(stop, axis=-1) > low)
    whole = (jnp.max(start, axis=-1) <= low) & (jnp.min(stop, axis=-1) >= low + TILE)
    count = touched.shape[-1]
    index = jnp.arange(count, dtype=jnp.int32)
    end = jnp.max(jnp.where(touched, index + 1, 0), axis=-1)
    first = jnp.minimum(jnp.min(jnp.where(touched, index, count), axis=-1), end)
    whole_first = jnp.clip(jnp.min(jnp.where(whole, index, count), axis=-1), first, end)
    gap = ~whole & (index >= whole_first[..., None])
    whole_end = jnp.clip(jnp.min(jnp.where(gap, index, count), axis=-1), whole_first, end)
    return jnp.stack([first, whole_first, whole_end, end], axis=-1).astype(jnp.int32)


def read_loop(plan: Any, row: Array, tile: Array, heads: int = 1) -> Loop:
    """Reads one tile's plan from global memory."""
    return Loop(*(plan[row, tile, i] for i in range(PLAN)), heads=heads)


def products(*pairs: tuple[Any, Any], meanwhile: Callable[[], None] = lambda: None) -> list[Float[Array, "M N"]]:
    """`a @ b` of each pair in float32, both in shared memory.

    All are issued before any is awaited, and `meanwhile()` runs in between.
    """

    def issue(*accumulators: Any) -> list[Array]:
        for acc, (a, b) in zip(accumulators, pairs):
            plgpu.wgmma(acc, a, b)
        meanwhile()
        return [acc[...] for acc in accumulators]

    shapes = [plgpu.ACC((a.shape[-2], b.shape[-1]), jnp.float32) for a, b in pairs]
    return pl.run_scoped(issue, *shapes)


def accumulate(*sums: tuple[Float[Array, "M N"], Array, Any], interpret: bool) -> list[Float[Array, "M N"]]:
    """`acc + a @ b` of each `(acc, a, b)`, `a` in registers and `b` in shared memory, issued together.

    The interpreter has no product with registers and gets an ordinary one.
    """
    if interpret:
        results = [acc + jnp.dot(a, b[...], preferred_element_type=jnp.float32) for acc, a, b in sums]
        plgpu.commit_smem()  # unlike `wgmma`, an ordinary read is not ordered before the next asynchronous copy
        return results

    def issue(accumulators: list[Any]) -> None:
        for acc, (_, a, b) in zip(accumulators, sums):
            plgpu.wgmma(acc, a, b)

    return pl.run_state(issue)([plgpu.ACC.init(acc) for acc, _, _ in sums])


def along(vector: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Broadcasts a vector that runs along `axis` of a tile."""
    return lax.broadcast_in_dim(vector, shape, [axis])


def inside(start: Array, stop: Array, first_key: Array, shape: tuple[int, int], keys_axis: int) -> Array:
    """Which scores of a tile are allowed, given its queries' ranges and the index of its first key."""
    keys = first_key + lax.broadcasted_iota(jnp.int32, shape, keys_axis)
    return (along(start, shape, 1 - keys_axis) <= keys) & (keys < along(stop, shape, 1 - keys_axis))


def produce(loop: Loop, stages: int, load: Callable[[Array, Array], None], free: tuple[Any, ...]) -> None:
    """The loading warpgroup: fills stage after stage of the ring as the compute warpgroups free them.

    Args:
        loop: the steps.
        stages: stages of the ring.
        load: `load(step, slot)` starts the copies of one step.
        free: barriers, one per stage, that the compute warpgroups arrive at when they are done with it.
    """

    def wait(step: Array) -> None:
        for barrier in free:
            plgpu.barrier_wait(barrier.at[lax.rem(step, jnp.int32(stages))])

    @pl.loop(0, jnp.minimum(loop.steps, stages))
    def _fill(step: Array) -> None:
        load(step, step)

    @pl.loop(stages, loop.steps)
    def _refill(step: Array) -> None:
        wait(step - stages)
        load(step, lax.rem(step, jnp.int32(stages)))

    @pl.loop(jnp.maximum(loop.steps - stages, 0), loop.steps)
    def _drain(step: Array) -> None:  # no barrier may complete a phase that nobody has seen
        wait(step)


def produce_keys(loop: Loop, config: Any, row: Array, head: Array, arrays: tuple[Any, Any, Any], smem: Any,
                 free: tuple[Any, ...]) -> None:  # fmt: skip
    """The loading warpgroup of a kernel that walks over blocks of keys: keys and values into their rings.

    Args:
        loop: the steps.
        config: names the `block` of keys and the `stages` of the rings.
        row, head: of the queries.
        arrays: q, k and v in global memory.
        smem: holds the rings `k` and `v` and their barriers `k_full` and `v_full`.
        free: see `produce`.
    """
    q, k, v = arrays
    kv_head = lax.div(head, jnp.int32(q.shape[2] // k.shape[2]))

    def load(step: Array, slot: Array) -> None:
        keys = row, pl.ds(loop.block(step) * config.block, config.block), kv_head
        plgpu.copy_gmem_to_smem(k.at[keys], smem.k.at[slot], smem.k_full.at[slot])
        plgpu.copy_gmem_to_smem(v.at[keys], smem.v.at[slot], smem.v_full.at[slot])

    produce(loop, config.stages, load, free)
