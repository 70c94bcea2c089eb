"""FlashAttention forward on Hopper: one tile of queries per thread block, keys and values streamed past it."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from videoauto_jax.kernels import mosaic_tiles as tiles
from videoauto_jax.kernels.mask import Mask
from videoauto_jax.kernels.mosaic_tiles import COMPUTE, LEAST, LOG2_E, ROWS, TILE


@dataclasses.dataclass(frozen=True)
class ForwardConfig:
    """How the kernel is cut.

    Attributes:
        block: keys per step.
        stages: steps in flight; shared memory bounds it.
    """

    block: int = 128
    stages: int = 2


def forward(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    scale: float,
    config: ForwardConfig,
    interpret: Any = False,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Output and natural log-sum-exp; T and S are multiples of `TILE` and of the block."""
    rows, length, heads, size = q.shape
    shared = lambda *shape, dtype=q.dtype: plgpu.SMEM(shape, dtype)  # noqa: E731
    ring = shared(config.stages, config.block, size)
    full = plgpu.Barrier(num_barriers=config.stages)
    free = plgpu.Barrier(num_arrivals=COMPUTE, num_barriers=config.stages)
    ranges = shared(COMPUTE, ROWS, dtype=jnp.int32)
    scratch = {
        "q": shared(COMPUTE, ROWS, size),
        "lse": shared(COMPUTE, ROWS, dtype=jnp.float32),
        "start": ranges,
        "stop": ranges,
        "k": ring,
        "v": ring,
        "loaded": plgpu.Barrier(num_arrivals=3, num_barriers=COMPUTE),
        "k_full": full,
        "v_full": full,
        "k_free": free,
        "v_free": free,
        "turn": plgpu.Barrier(num_arrivals=COMPUTE, num_barriers=1),
    }
    kernel = plgpu.kernel(
        functools.partial(_kernel, scale=scale, config=config, interpret=bool(interpret)),
        out_type=(q, jax.ShapeDtypeStruct((rows, heads, length), jnp.float32)),
        scratch_types=scratch,
        grid=(rows, length // TILE, heads),
        grid_names=("row", "tile", "head"),
        num_threads=COMPUTE + 1,
        thread_name="warpgroup",
        kernel_name="flash_forward",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=interpret,
    )
    return kernel(q, k, v, mask.start, mask.stop, tiles.plan_queries(mask, config.block))


def _kernel(q, k, v, start, stop, plan, out, lse, /, *, scale, config, interpret, **smem) -> None:
    smem = SimpleNamespace(**smem)
    row, head = lax.axis_index("row"), lax.axis_index("head")
    # A causal row's last tiles visit the most blocks: longest first leaves the shortest to fill the gaps at the end.
    tile = q.shape[1] // TILE - 1 - lax.axis_index("tile")
    loop = tiles.read_loop(plan, row, tile)
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup == COMPUTE)
    def _load() -> None:
        plgpu.set_max_registers(40, action="decrease")
        tiles.produce_keys(loop, config, row, head, (q, k, v), smem, (smem.k_free, smem.v_free))

    @pl.when(warpgroup < COMPUTE)
    def _compute() -> None:
        plgpu.set_max_registers(232, action="increase")
        mine = pl.ds(tile * TILE + warpgroup * ROWS, ROWS)
        sources = q.at[row, mine, head], start.at[row, mine], stop.at[row, mine]
        for source, target in zip(sources, (smem.q, smem.start, smem.stop)):
            plgpu.copy_gmem_to_smem(source, target.at[warpgroup], smem.loaded.at[warpgroup])
        plgpu.barrier_wait(smem.loaded.at[warpgroup])
        acc, top, total = _softmax_loop(smem, warpgroup, loop, scale * LOG2_E, config, interpret)
        seen = total > 0
        safe = jnp.where(seen, total, 1.0)
        smem.lse[warpgroup] = jnp.where(seen, (top + jnp.log2(safe)) / LOG2_E, -jnp.inf)
        smem.q[warpgroup] = (acc * tiles.along(1.0 / safe, acc.shape, 0)).astype(q.dtype)  # q is no longer needed
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(smem.q.at[warpgroup], out.at[row, mine, head])
        plgpu.copy_smem_to_gmem(smem.lse.at[warpgroup], lse.at[row, head, mine])
        plgpu.wait_smem_to_gmem(0)


def _softmax_loop(smem, warpgroup, loop, scale, config, interpret) -> tuple[Array, Array, Array]:
    """Online softmax in base 2 over all steps: unnormalised output, maximum, sum.

    The two warpgroups take turns (FlashAttention-3's ping-pong): a turn ends when a warpgroup has issued its score
    product, and again when it has finished its softmax, so tensor cores always have the other one's products to do.
    """
    rows, size = smem.q.shape[-2:]

    def end_turn() -> None:
        plgpu.barrier_arrive(smem.turn.at[0])
        plgpu.barrier_wait(smem.turn.at[0])

    def step(index: Array, carry: tuple[Array, Array, Array], masked: bool) -> tuple[Array, Array, Array]:
        acc, top, total = carry
        slot = lax.rem(index, jnp.int32(config.stages))
        plgpu.barrier_wait(smem.k_full.at[slot])
        (scores,) = tiles.products((smem.q.at[warpgroup], smem.k.at[slot].T), meanwhile=end_turn)
        plgpu.barrier_arrive(smem.k_free.at[slot])
        if masked:
            first = loop.block(index) * config.block
            allowed = tiles.inside(smem.start[warpgroup], smem.stop[warpgroup], first, scores.shape, keys_axis=1)
            scores = jnp.where(allowed, scores, -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1) * scale)
        weights = jnp.exp2(scores * scale - tiles.along(new_top, scores.shape, 0))
        shrink = jnp.exp2(top - new_top)
        acc = acc * tiles.along(shrink, acc.shape, 0)
        total = total * shrink + jnp.sum(weights, axis=1)
        narrow = weights.astype(smem.v.dtype)
        # The compiler would move what the product does not need behind the turn, into the other warpgroup's.
        acc, new_top, total, narrow = lax.optimization_barrier((acc, new_top, total, narrow))
        end_turn()
        plgpu.barrier_wait(smem.v_full.at[slot])
        (acc,) = tiles.accumulate((acc, narrow, smem.v.at[slot]), interpret=interpret)
        plgpu.barrier_arrive(smem.v_free.at[slot])
        return acc, new_top, total

    pl.when(warpgroup == 1)(end_turn)
    carry = jnp.zeros((rows, size), jnp.float32), jnp.full(rows, LEAST, jnp.float32), jnp.zeros(rows, jnp.float32)
    carry = loop.run(step, carry)
    pl.when(warpgroup == 0)(end_turn)
    return carry
