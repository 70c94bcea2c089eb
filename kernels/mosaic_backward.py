"""FlashAttention backward on Hopper, in two kernels: one sums over keys (dq), one over queries (dk, dv).

One kernel for both would compute the scores once instead of twice, but would have to add its parts of dq atomically, in
an order that differs from run to run. Two kernels make gradients the same bits every time.

With `p = exp(s - lse)` and `delta = <out, out_bar> - lse_bar`, the gradient of a score is `p (<out_bar, v> - delta)`.
"""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from videoauto_jax.kernels import mosaic_tiles as tiles
from videoauto_jax.kernels.mask import Mask
from videoauto_jax.kernels.mosaic_tiles import COMPUTE, LOG2_E, ROWS, TILE

OPTIONS = {
    "num_threads": COMPUTE + 1,
    "thread_name": "warpgroup",
    "compiler_params": plgpu.CompilerParams(approx_math=True),
}


@dataclasses.dataclass(frozen=True)
class BackwardConfig:
    """How a kernel is cut.

    Attributes:
        block: keys per step of the kernel for dq, queries per step of the kernel for dk and dv.
        stages: steps in flight.
    """

    block: int = 64
    stages: int = 2


def backward_queries(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    out_bar: Float[Array, "B T N H"],
    lse: Float[Array, "B N T"],
    delta: Float[Array, "B N T"],
    scale: float,
    config: BackwardConfig,
    interpret: Any = False,
) -> Float[Array, "B T N H"]:
    """The gradient of q. `lse` is in base 2, and large where a query sees nothing."""
    rows, length, heads, size = q.shape
    tile, vector = plgpu.SMEM((COMPUTE, ROWS, size), q.dtype), plgpu.SMEM((COMPUTE, ROWS), jnp.float32)
    ranges, ring = plgpu.SMEM((COMPUTE, ROWS), jnp.int32), plgpu.SMEM((config.stages, config.block, size), q.dtype)
    full = plgpu.Barrier(num_barriers=config.stages)
    free = plgpu.Barrier(num_arrivals=COMPUTE, num_barriers=config.stages)
    kernel = plgpu.kernel(
        functools.partial(_queries_kernel, scale=scale, config=config, interpret=bool(interpret)),
        out_type=q,
        scratch_types={
            "q": tile,
            "out_bar": tile,
            "lse": vector,
            "delta": vector,
            "start": ranges,
            "stop": ranges,
            "k": ring,
            "v": ring,
            "loaded": plgpu.Barrier(num_arrivals=6, num_barriers=COMPUTE),
            "k_full": full,
            "v_full": full,
            "free": free,
        },
        grid=(rows, length // TILE, heads),
        grid_names=("row", "tile", "head"),
        kernel_name="flash_backward_queries",
        interpret=interpret,
        **OPTIONS,
    )
    plan = tiles.plan_queries(mask, config.block)
    return kernel(q, k, v, out_bar, lse, delta, mask.start, mask.stop, plan)


def _queries_kernel(
    q, k, v, out_bar, lse, delta, start, stop, plan, q_bar, /, *, scale, config, interpret, **smem
) -> None:
    smem = SimpleNamespace(**smem)
    row, head = lax.axis_index("row"), lax.axis_index("head")
    tile = q.shape[1] // TILE - 1 - lax.axis_index("tile")  # longest first, as forward
    loop = tiles.read_loop(plan, row, tile)
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup == COMPUTE)
    def _load() -> None:
        plgpu.set_max_registers(24, action="decrease")
        tiles.produce_keys(loop, config, row, head, (q, k, v), smem, (smem.free,))

    @pl.when(warpgroup < COMPUTE)
    def _compute() -> None:
        plgpu.set_max_registers(240, action="increase")
        mine = pl.ds(tile * TILE + warpgroup * ROWS, ROWS)
        sources = (q.at[row, mine, head], out_bar.at[row, mine, head], lse.at[row, head, mine],
                   delta.at[row, head, mine], start.at[row, mine], stop.at[row, mine])  # fmt: skip
        targets = smem.q, smem.out_bar, smem.lse, smem.delta, smem.start, smem.stop
        for source, target in zip(sources, targets):
            plgpu.copy_gmem_to_smem(source, target.at[warpgroup], smem.loaded.at[warpgroup])
        plgpu.barrier_wait(smem.loaded.at[warpgroup])
        acc = _sum_over_keys(smem, warpgroup, loop, scale, config, interpret)
        smem.q[warpgroup] = (acc * scale).astype(q.dtype)  # q is no longer needed
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(smem.q.at[warpgroup], q_bar.at[row, mine, head])
        plgpu.wait_smem_to_gmem(0)


def _sum_over_keys(smem, warpgroup, loop, scale, config, interpret) -> Float[Array, "rows H"]:
    q, out_bar = smem.q.at[warpgroup], smem.out_bar.at[warpgroup]
    shape = q.shape[-2], config.block

    def step(index: Array, acc: Array, masked: bool) -> Array:
        slot = lax.rem(index, jnp.int32(config.stages))
        plgpu.barrier_wait(smem.k_full.at[slot])
        plgpu.barrier_wait(smem.v_full.at[slot])
        scores, weights_bar = tiles.products((q, smem.k.at[slot].T), (out_bar, smem.v.at[slot].T))
        weights = jnp.exp2(scores * (scale * LOG2_E) - tiles.along(smem.lse[warpgroup], shape, 0))
        if masked:
            first = loop.block(index) * config.block
            allowed = tiles.inside(smem.start[warpgroup], smem.stop[warpgroup], first, shape, keys_axis=1)
            weights = jnp.where(allowed, weights, 0.0)
        scores_bar = weights * (weights_bar - tiles.along(smem.delta[warpgroup], shape, 0))
        (acc,) = tiles.accumulate((acc, scores_bar.astype(smem.k.dtype), smem.k.at[slot]), interpret=interpret)
        plgpu.barrier_arrive(smem.free.at[slot])
        return acc

    return loop.run(step, jnp.zeros(q.shape[-2:], jnp.float32))


def backward_keys(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    out_bar: Float[Array, "B T N H"],
    lse: Float[Array, "B N T"],
    delta: Float[Array, "B N T"],
    scale: float,
    config: BackwardConfig,
    interpret: Any = False,
) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
    """The gradients of k and v. A thread block sums over all query heads of its key head: nothing is added after."""
    rows, keys, kv_heads, size = k.shape
    tile = plgpu.SMEM((COMPUTE, ROWS, size), k.dtype)
    ring = plgpu.SMEM((config.stages, config.block, size), k.dtype)
    vector, ranges = (plgpu.SMEM((config.stages, config.block), dtype) for dtype in (jnp.float32, jnp.int32))
    kernel = plgpu.kernel(
        functools.partial(_keys_kernel, scale=scale, config=config, interpret=bool(interpret)),
        out_type=(k, v),
        scratch_types={
            "k": tile,
            "v": tile,
            "q": ring,
            "out_bar": ring,
            "lse": vector,
            "delta": vector,
            "start": ranges,
            "stop": ranges,
            "loaded": plgpu.Barrier(num_arrivals=2, num_barriers=COMPUTE),
            "full": plgpu.Barrier(num_arrivals=6, num_barriers=config.stages),
            "free": plgpu.Barrier(num_arrivals=COMPUTE, num_barriers=config.stages),
        },
        grid=(rows, keys // TILE, kv_heads),
        grid_names=("row", "tile", "head"),
        kernel_name="flash_backward_keys",
        interpret=interpret,
        **OPTIONS,
    )
    plan = tiles.plan_keys(mask, config.block, keys)
    return kernel(q, k, v, out_bar, lse, delta, mask.start, mask.stop, plan)


def _keys_kernel(
    q, k, v, out_bar, lse, delta, start, stop, plan, k_bar, v_bar, /, *, scale, config, interpret, **smem
) -> None:
    smem = SimpleNamespace(**smem)
    row, tile, kv_head = (lax.axis_index(name) for name in ("row", "tile", "head"))  # a causal row's first is longest
    group = q.shape[2] // k.shape[2]
    loop = tiles.read_loop(plan, row, tile, heads=group)
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup == COMPUTE)
    def _load() -> None:
        plgpu.set_max_registers(24, action="decrease")

        def load(step: Array, slot: Array) -> None:
            queries = pl.ds(loop.block(step) * config.block, config.block)
            head = kv_head * group + loop.head(step)
            sources = (q.at[row, queries, head], out_bar.at[row, queries, head], lse.at[row, head, queries],
                       delta.at[row, head, queries], start.at[row, queries], stop.at[row, queries])  # fmt: skip
            targets = smem.q, smem.out_bar, smem.lse, smem.delta, smem.start, smem.stop
            for source, target in zip(sources, targets):
                plgpu.copy_gmem_to_smem(source, target.at[slot], smem.full.at[slot])

        tiles.produce(loop, config.stages, load, (smem.free,))

    @pl.when(warpgroup < COMPUTE)
    def _compute() -> None:
        plgpu.set_max_registers(240, action="increase")
        first = tile * TILE + warpgroup * ROWS
        mine = row, pl.ds(first, ROWS), kv_head
        for source, target in ((k, smem.k), (v, smem.v)):
            plgpu.copy_gmem_to_smem(source.at[mine], target.at[warpgroup], smem.loaded.at[warpgroup])
        plgpu.barrier_wait(smem.loaded.at[warpgroup])
        k_sum, v_sum = _sum_over_queries(smem, warpgroup, first, loop, scale, config, interpret)
        smem.k[warpgroup] = (k_sum * scale).astype(k.dtype)
        smem.v[warpgroup] = v_sum.astype(v.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(smem.k.at[warpgroup], k_bar.at[mine])
        plgpu.copy_smem_to_gmem(smem.v.at[warpgroup], v_bar.at[mine])
        plgpu.wait_smem_to_gmem(0)


def _sum_over_queries(smem, warpgroup, first, loop, scale, config, interpret) -> tuple[Array, Array]:
    """Keys run down and queries across, so that weights are what a product takes from registers: its left side."""
    k, v = smem.k.at[warpgroup], smem.v.at[warpgroup]
    shape = k.shape[-2], config.block

    def step(index: Array, carry: tuple[Array, Array], masked: bool) -> tuple[Array, Array]:
        k_sum, v_sum = carry
        slot = lax.rem(index, jnp.int32(config.stages))
        plgpu.barrier_wait(smem.full.at[slot])
        scores, weights_bar = tiles.products((k, smem.q.at[slot].T), (v, smem.out_bar.at[slot].T))
        weights = jnp.exp2(scores * (scale * LOG2_E) - tiles.along(smem.lse[slot], shape, 1))
        if masked:
            allowed = tiles.inside(smem.start[slot], smem.stop[slot], first, shape, keys_axis=0)
            weights = jnp.where(allowed, weights, 0.0)
        scores_bar = weights * (weights_bar - tiles.along(smem.delta[slot], shape, 1))
        k_sum, v_sum = tiles.accumulate(
            (k_sum, scores_bar.astype(k.dtype), smem.q.at[slot]),
            (v_sum, weights.astype(k.dtype), smem.out_bar.at[slot]),
            interpret=interpret,
        )
        plgpu.barrier_arrive(smem.free.at[slot])
        return k_sum, v_sum

    zeros = jnp.zeros(k.shape[-2:], jnp.float32)
    return loop.run(step, (zeros, zeros))
