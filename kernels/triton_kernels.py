"""The two Triton kernels of a decoding step: attention of splits, and their merge. Nothing here knows of JAX.

Names of constants are the project's shape letters: G branches per prompt, N query heads, K key heads, P prompt slots,
R slots of a branch, H head size; HEAD is H rounded up to a power of two, which Triton's ranges need.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def split_kernel(
    q, prompt_k, prompt_v, prompt_k_scale, prompt_v_scale, own_k, own_v, own_k_scale, own_v_scale,
    start, stop, lengths, layer, outs, lses,
    G: tl.constexpr, N: tl.constexpr, K: tl.constexpr, P: tl.constexpr, R: tl.constexpr, H: tl.constexpr,
    HEAD: tl.constexpr, SPLIT: tl.constexpr, PROMPT_SPLITS: tl.constexpr, OWN_SPLITS: tl.constexpr,
    TILES: tl.constexpr, SHARED_ROWS: tl.constexpr, OWN_ROWS: tl.constexpr, BLOCK: tl.constexpr,
    QUANTIZED: tl.constexpr, OWN_QUANTIZED: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """One split of the prompt for all branches (the first programs), or of one branch's own keys (the others)."""
    program, pair = tl.program_id(0), tl.program_id(1)
    number = tl.load(layer) * (tl.num_programs(1) // K)  # prompts in the layers before this one
    parts = pair * (PROMPT_SPLITS + OWN_SPLITS) * (G * (N // K))  # where the partials of this prompt and head begin
    if program < TILES * PROMPT_SPLITS:
        _prompt_split(
            q, prompt_k, prompt_v, prompt_k_scale, prompt_v_scale, start, stop, outs, lses, parts, program // TILES,
            program % TILES, number, pair // K, pair % K, G, N, K, P, H, HEAD, SPLIT, SHARED_ROWS, BLOCK, QUANTIZED,
            SCALE,
        )  # fmt: skip
    else:
        own = program - TILES * PROMPT_SPLITS
        _own_split(
            q, own_k, own_v, own_k_scale, own_v_scale, lengths, outs, lses, parts + PROMPT_SPLITS * (G * (N // K)),
            own // G, own % G, number, pair // K, pair % K, G, N, K, R, H, HEAD, SPLIT, OWN_ROWS, BLOCK, OWN_QUANTIZED,
            SCALE,
        )  # fmt: skip


@triton.jit
def _prompt_split(
    q, k, v, k_scale, v_scale, start, stop, outs, lses, parts, part, tile, number, row, kv_head,
    G: tl.constexpr, N: tl.constexpr, K: tl.constexpr, P: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, QUANTIZED: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    query, head = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, HEAD)
    real = query < G * (N // K)
    first = tl.maximum(tl.load(start + row * G), part * SPLIT)
    last = tl.minimum(tl.load(stop + row * G), part * SPLIT + SPLIT)
    keys = (number + row).to(tl.int64) * (P * K) + kv_head
    rows = _queries(q, row, kv_head, query, real, head, G, N, K, H)
    out, lse = _partial(
        rows, k + keys * H, v + keys * H, k_scale + keys, v_scale + keys, first, last, head,
        K, H, BLOCK, QUANTIZED, SCALE,
    )  # fmt: skip
    _store(outs, lses, parts + part * (G * (N // K)) + query, real, head, out, lse, H)


@triton.jit
def _own_split(
    q, k, v, k_scale, v_scale, lengths, outs, lses, parts, part, branch, number, row, kv_head,
    G: tl.constexpr, N: tl.constexpr, K: tl.constexpr, R: tl.constexpr, H: tl.constexpr, HEAD: tl.constexpr,
    SPLIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, QUANTIZED: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    within, head = tl.arange(0, ROWS), tl.arange(0, HEAD)
    query, real = branch * (N // K) + within, within < N // K
    last = tl.minimum(tl.minimum(tl.load(lengths + row * G + branch), R), part * SPLIT + SPLIT)
    keys = ((number + row) * G + branch).to(tl.int64) * (R * K) + kv_head
    rows = _queries(q, row, kv_head, query, real, head, G, N, K, H)
    out, lse = _partial(
        rows, k + keys * H, v + keys * H, k_scale + keys, v_scale + keys, part * SPLIT, last, head,
        K, H, BLOCK, QUANTIZED, SCALE,
    )  # fmt: skip
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
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
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
    tl.store(result_lse + place, tl.where(total > 0, (top + tl.log2(safe)) / LOG2_E, float("-inf")))
