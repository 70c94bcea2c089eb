"""Decoding in Triton: all branches of a prompt read its cache together, each its own cache after it.

A decoding step is bound by memory. The prompt's keys are read once for `G * N / K` rows (16 branches of 7 heads: 112),
which is also what makes the product tall enough for tensor cores. Keys are split over programs so that one prompt fills
the GPU; a second small kernel merges the partials of prompt and branches alike, so a step is two launches.
"""

import dataclasses

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jaxtyping import Array, Float, Int

from videoauto_jax.kernels import backends
from videoauto_jax.kernels.mask import Mask
from videoauto_jax.kernels.quantized import Quantized

XLA_SPLITS = False

PROGRAMS = 2 * 132
"""Programs aimed at: two for each multiprocessor of an H100, so that loads of one hide the arithmetic of the other."""
LEAST_SPLIT = 512
"""Keys of a program at least: below, writing and merging partials costs more than it spreads."""
LOG2_E = 1.4426950408889634
SPLIT_OPTIONS = dict(num_warps=8, num_stages=3)
"""Four warps would spill the 128 rows of sixteen branches; three stages keep 64 KiB of keys in flight."""
MERGE_OPTIONS = dict(num_warps=4)


def refusal(
    q: Array, prompt_k: Array | Quantized, prompt_v: Array | Quantized, mask: Mask, k: Array, v: Array, lengths: Array
) -> str | None:
    """Why this kernel cannot serve a call, or None."""
    kind = backends.device_kind()
    if not kind.startswith("NVIDIA"):
        return f"its kernels are for NVIDIA GPUs, and this is {kind}"
    try:
        import jax_triton  # noqa: F401
    except ImportError as error:
        return f"jax-triton cannot be imported ({error})"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"queries are {q.dtype}, not bfloat16 or float16"
    if isinstance(prompt_k, Quantized) != isinstance(prompt_v, Quantized):
        return "keys and values must both be quantized, or neither"
    if q.shape[-1] > 256:
        return f"head size {q.shape[-1]} is above 256"
    return None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a call is cut: static facts, from which the grids and the kernels' constants follow.

    Attributes:
        rows: prompts, `B`.
        branches: `G`.
        heads, kv_heads: `N`, `K`.
        prompt, slots: keys of the prompt and of a branch, `P` and `R`.
        size: `H`.
        split: keys of one program.
        quantized: whether the prompt's cache has scales.
    """

    rows: int
    branches: int
    heads: int
    kv_heads: int
    prompt: int
    slots: int
    size: int
    split: int
    quantized: bool

    @property
    def prompt_splits(self) -> int:
        """Programs per prompt and key head."""
        return triton.cdiv(self.prompt, self.split)

    @property
    def own_splits(self) -> int:
        """Programs per branch and key head."""
        return triton.cdiv(self.slots, self.split)

    @property
    def partials(self) -> tuple[int, ...]:
        """Shape of the partial log-sum-exps; the outputs have H more."""
        queries = self.branches * self.heads // self.kv_heads
        return self.rows * self.kv_heads, self.prompt_splits + self.own_splits, queries

    def split_launch(self) -> tuple[tuple[int, ...], dict]:
        """Grid and constants of the first kernel."""
        group = self.heads // self.kv_heads
        tile = min(max(16, triton.next_power_of_2(self.branches * group)), 128)
        tiles = triton.cdiv(self.branches * group, tile)
        constants = dict(
            G=self.branches, N=self.heads, K=self.kv_heads, P=self.prompt, R=self.slots, H=self.size,
            HEAD=max(16, triton.next_power_of_2(self.size)), SPLIT=self.split, PROMPT_SPLITS=self.prompt_splits,
            OWN_SPLITS=self.own_splits, TILES=tiles, SHARED_ROWS=tile, OWN_ROWS=max(16, triton.next_power_of_2(group)),
            BLOCK=64, QUANTIZED=self.quantized, SCALE=self.size**-0.5 * LOG2_E,
        )  # fmt: skip
        return (tiles * self.prompt_splits + self.branches * self.own_splits, self.rows * self.kv_heads, 1), constants

    def merge_launch(self) -> tuple[tuple[int, ...], dict]:
        """Grid and constants of the second kernel."""
        pairs, splits, queries = self.partials
        constants = dict(
            G=self.branches, N=self.heads, K=self.kv_heads, H=self.size, HEAD=triton.next_power_of_2(self.size),
            SPLITS=splits, BLOCK=min(32, triton.next_power_of_2(splits)), LOG2E=LOG2_E,
        )  # fmt: skip
        return (queries, pairs, 1), constants


def plan(q: Array, prompt_k: Array | Quantized, k: Array) -> Plan:
    """The plan of a call."""
    rows, branches, heads, size = q.shape
    prompt, kv_heads = prompt_k.shape[1:3]
    wanted = triton.cdiv(prompt * rows * kv_heads, PROGRAMS)
    split = max(LEAST_SPLIT, triton.cdiv(wanted, 64) * 64)
    quantized = isinstance(prompt_k, Quantized)
    return Plan(rows, branches, heads, kv_heads, prompt, k.shape[2], size, split, quantized)


def decode(
    q: Float[Array, "B G N H"],
    prompt_k: Array | Quantized,
    prompt_v: Array | Quantized,
    mask: Mask,
    k: Float[Array, "B G R K H"],
    v: Float[Array, "B G R K H"],
    lengths: Int[Array, "B G"],
) -> tuple[Float[Array, "B G N H"], Float[Array, "B G N"]]:
    """See `videoauto_jax.kernels.attention.decode_partial`."""
    cut = plan(q, prompt_k, k)
    values = lambda x: (x.values, x.scale) if isinstance(x, Quantized) else (x, lengths)  # noqa: E731  no scale is read
    (shared_k, k_scale), (shared_v, v_scale) = values(prompt_k), values(prompt_v)
    ends = [x.astype(jnp.int32) for x in (mask.start, mask.stop, lengths)]
    operands = q, shared_k, shared_v, k_scale, v_scale, k, v, *ends
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((*cut.partials, cut.size), cut.partials)]
    outs, lses = _call(split_kernel, operands, shapes, cut.split_launch(), **SPLIT_OPTIONS)
    shapes = [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32)]
    return tuple(_call(merge_kernel, (outs, lses), shapes, cut.merge_launch(), **MERGE_OPTIONS))


def _call(kernel, operands, out, launch, **options) -> list[Array]:
    """jax-triton 0.3 takes `out_shape`, 0.4 `out_type`; without a GPU, neither can ask what it is compiling for."""
    import inspect

    import jax_triton

    grid, constants = launch
    parameters = inspect.signature(jax_triton.triton_call).parameters
    options["out_shape" if "out_shape" in parameters else "out_type"] = out
    if jax.default_backend() != "gpu":
        options["compute_capability"] = 90
    return jax_triton.triton_call(*operands, kernel=kernel, grid=grid, **options, **constants)


@triton.jit
def split_kernel(
    q, prompt_k, prompt_v, k_scale, v_scale, own_k, own_v, start, stop, lengths, outs, lses,
    G: tl.constexpr, N: tl.constexpr, K: tl.constexpr, P: tl.constexpr, R: tl.constexpr, H: tl.constexpr,
    HEAD: tl.constexpr, SPLIT: tl.constexpr, PROMPT_SPLITS: tl.constexpr, OWN_SPLITS: tl.constexpr,
    TILES: tl.constexpr, SHARED_ROWS: tl.constexpr, OWN_ROWS: tl.constexpr, BLOCK: tl.constexpr,
    QUANTIZED: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """One split of the prompt for all branches (the first programs), or of one branch's own keys (the others)."""
    program, pair = tl.program_id(0), tl.program_id(1)
    parts = pair * (PROMPT_SPLITS + OWN_SPLITS) * (G * (N // K))  # where the partials of this prompt and head begin
    if program < TILES * PROMPT_SPLITS:
        _prompt_split(
            q, prompt_k, prompt_v, k_scale, v_scale, start, stop, outs, lses, parts, program // TILES,
            program % TILES, pair // K, pair % K, G, N, K, P, H, HEAD, SPLIT, SHARED_ROWS, BLOCK, QUANTIZED, SCALE,
        )  # fmt: skip
    else:
        own = program - TILES * PROMPT_SPLITS
        _own_split(
            q, own_k, own_v, k_scale, v_scale, lengths, outs, lses, parts + PROMPT_SPLITS * (G * (N // K)), own // G,
            own % G, pair // K, pair % K, G, N, K, R, H, HEAD, SPLIT, OWN_ROWS, BLOCK, SCALE,
        )  # fmt: skip


@triton.jit
def _prompt_split(
    q, k, v, k_scale, v_scale, start, stop, outs, lses, parts, part, tile, row, kv_head,
    G: tl.constexpr, N: tl.constexpr, K: tl.constexpr, P: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, QUANTIZED: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    query, head = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, HEAD)
    real = query < G * (N // K)
    first = tl.maximum(tl.load(start + row * G), part * SPLIT)
    last = tl.minimum(tl.load(stop + row * G), part * SPLIT + SPLIT)
    keys = row.to(tl.int64) * (P * K) + kv_head
    rows = _queries(q, row, kv_head, query, real, head, G, N, K, H)
    out, lse = _partial(
        rows, k + keys * H, v + keys * H, k_scale + keys, v_scale + keys, first, last, head,
        K, H, BLOCK, QUANTIZED, SCALE,
    )  # fmt: skip
    _store(outs, lses, parts + part * (G * (N // K)) + query, real, head, out, lse, H)


@triton.jit
def _own_split(
    q, k, v, k_scale, v_scale, lengths, outs, lses, parts, part, branch, row, kv_head,
    G: tl.constexpr, N: tl.constexpr, K: tl.constexpr, R: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    within, head = tl.arange(0, ROWS), tl.arange(0, HEAD)
    query, real = branch * (N // K) + within, within < N // K
    last = tl.minimum(tl.minimum(tl.load(lengths + row * G + branch), R), part * SPLIT + SPLIT)
    keys = (row * G + branch).to(tl.int64) * (R * K) + kv_head
    rows = _queries(q, row, kv_head, query, real, head, G, N, K, H)
    out, lse = _partial(
        rows, k + keys * H, v + keys * H, k_scale, v_scale, part * SPLIT, last, head, K, H, BLOCK, False, SCALE
    )
    _store(outs, lses, parts + part * (G * (N // K)) + query, real, head, out, lse, H)


@triton.jit
def _queries(
    q, row, kv_head, query, real, head,
    G: tl.constexpr, N: tl.constexpr, K: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """The queries of one key head: rows are (branch, head of the group)."""
    group: tl.constexpr = N // K
    at = (row * G + query // group) * N + kv_head * group + query % group
    return tl.load(q + at[:, None] * H + head[None, :], mask=real[:, None] & (head < H)[None, :], other=0.0)


@triton.jit
def _partial(
    q, k, v, k_scale, v_scale, first, last, head,
    K: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, QUANTIZED: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Attention of a tile of queries over the keys `[first, last)`, with base-2 log-sum-exp; -inf if there are none."""
    rows: tl.constexpr = q.shape[0]
    top = tl.full([rows], -1e30, tl.float32)
    total = tl.zeros([rows], tl.float32)
    acc = tl.zeros([rows, q.shape[1]], tl.float32)
    for block in range(first, last, BLOCK):
        key = block + tl.arange(0, BLOCK)
        there = key < last
        at = key.to(tl.int64)[:, None] * (K * H) + head[None, :]
        inside = there[:, None] & (head < H)[None, :]
        keys = tl.load(k + at, mask=inside, other=0.0).to(q.dtype)
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * SCALE
        if QUANTIZED:
            scores *= tl.load(k_scale + key.to(tl.int64) * K, mask=there, other=0.0)[None, :]
        scores = tl.where(there[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(weights, 1)
        if QUANTIZED:
            weights *= tl.load(v_scale + key.to(tl.int64) * K, mask=there, other=0.0)[None, :]
        values = tl.load(v + at, mask=inside, other=0.0).to(q.dtype)
        acc = tl.dot(weights.to(q.dtype), values, acc * shrink[:, None], input_precision="ieee")
        top = new_top
    lse = tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    return acc / tl.where(total > 0, total, 1.0)[:, None], lse


@triton.jit
def _store(outs, lses, at, real, head, out, lse, H: tl.constexpr):
    tl.store(outs + at.to(tl.int64)[:, None] * H + head[None, :], out, mask=real[:, None] & (head < H)[None, :])
    tl.store(lses + at, lse, mask=real)


@triton.jit
def merge_kernel(
    outs, lses, result, result_lse,
    G: tl.constexpr, N: tl.constexpr, K: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, LOG2E: tl.constexpr,
):  # fmt: skip
    """One query: the sum of its partials, weighted by the exponentials of their log-sum-exps."""
    query, pair = tl.program_id(0), tl.program_id(1).to(tl.int64)
    group: tl.constexpr = N // K
    head = tl.arange(0, HEAD)
    top, total = -1e30, 0.0
    acc = tl.zeros([HEAD], tl.float32)
    for block in range(0, SPLITS, BLOCK):
        part = block + tl.arange(0, BLOCK)
        at = (pair * SPLITS + part) * (G * group) + query
        lse = tl.load(lses + at, mask=part < SPLITS, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(lse, 0))
        weight = tl.exp2(lse - new_top)
        inside = (part < SPLITS)[:, None] & (head < H)[None, :]
        out = tl.load(outs + at[:, None] * H + head[None, :], mask=inside, other=0.0)
        shrink = tl.exp2(top - new_top)
        acc = acc * shrink + tl.sum(weight[:, None] * out, 0)
        total = total * shrink + tl.sum(weight, 0)
        top = new_top
    row, kv_head = pair // K, pair % K
    place = (row * G + query // group) * N + kv_head * group + query % group
    safe = tl.where(total > 0, total, 1.0)
    tl.store(result + place * H + head, (acc / safe).to(result.dtype.element_ty), mask=head < H)
    tl.store(result_lse + place, tl.where(total > 0, (top + tl.log2(safe)) / LOG2E, float("-inf")))
