"""The attention op: partial attentions that merge.

`attend` gives a partial result and its log-sum-exp; `merge` joins two partials over disjoint keys into the exact
attention over their union. Prompt plus branch, cached decoding and anything that splits keys is this one algebra.

Shapes: `B` rows, `T` queries, `S` keys, `N` query heads, `K` key/value heads (`N` a multiple of `K`), `H` head size.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videoauto_jax.errors import BackendError
from videoauto_jax.kernels import backends
from videoauto_jax.kernels.mask import Mask, packed, shared
from videoauto_jax.kernels.quantized import Quantized
from videoauto_jax.kernels.sharded import context_axis, head_repeats, merged_over, over_mesh

Partial = tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeCache:
    """What decoding reads: all layers in one array each, since a kernel can find its layer in it but XLA would copy
    the layer out for it, and so read and write the whole cache once more.

    Attributes:
        prompt_k, prompt_v: the shared prompt's, plain or quantized.
        segments: non-zero where the prompt has a token; padded on the right.
        k, v: each branch's own, plain or quantized; `R` may be 0.
        lengths: filled slots of each branch's own.
        reach: static upper bound on `lengths`, or None: what lies beyond need not be read.
    """

    prompt_k: Float[Array, "L B P K H"] | Quantized
    prompt_v: Float[Array, "L B P K H"] | Quantized
    segments: Int[Array, "B P"]
    k: Float[Array, "L B G R K H"] | Quantized
    v: Float[Array, "L B G R K H"] | Quantized
    lengths: Int[Array, "B G"]
    reach: int | None = dataclasses.field(default=None, metadata={"static": True})


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    *,
    backend: str = "auto",
    forward_only: bool = False,
) -> Partial:
    """Scaled dot-product attention over the keys that `mask` allows; scale is `H ** -0.5`.

    Differentiable in q, k and v through both results, on every backend.

    Args:
        q, k, v: queries, keys and values.
        mask: which keys each query sees.
        backend: a name, or "auto".
        forward_only: lets "auto" take what is fastest without a gradient; one may be asked for all the same.

    Returns:
        The output in q's dtype, and the natural logarithm of the sum of exponentials in float32. Where a query sees no
        key they are 0 and -inf.

    Raises:
        BackendError: the shapes do not belong together; the backend does not exist, or cannot serve this call. The
            message says why.
    """
    _check_shapes(q, k, v, mask)
    backends.known("attend", backend)
    if k.shape[1] == 0:
        return jnp.zeros_like(q), jnp.full(q.shape[:-1], -jnp.inf, jnp.float32)
    module = backends.choose("attend", backend, q, k, v, mask, forward_only=forward_only)
    if module.XLA_SPLITS:
        return module.attend(q, k, v, mask)
    k, v = (jnp.repeat(x, head_repeats(q.shape[2], k.shape[2]), axis=2) for x in (k, v))
    return over_mesh(module.attend, (q, k, v, mask), ("B.K", "B.K", "B.K", "B"), ("B.K", "B.K"))


def _check_shapes(q: Array, k: Array, v: Array, mask: Mask) -> None:
    """Kernels would read past the ends of what does not fit together."""
    rows, queries, heads, size = q.shape
    if k.shape != v.shape or (k.shape[0], k.shape[3]) != (rows, size) or mask.start.shape != (rows, queries):
        shapes = ", ".join(str(list(x.shape)) for x in (q, k, v, mask.start))
        raise BackendError(f"q, k, v and mask do not belong together: {shapes}", fix="See the shapes of `attend`")
    if heads % k.shape[2]:
        raise BackendError(f"{heads} query heads are no multiple of {k.shape[2]} key/value heads")


def merge(a: Partial, b: Partial) -> Partial:
    """Joins two partial attentions of the same queries over disjoint keys."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    top = jnp.maximum(lse_a, lse_b)
    # Any finite shift cancels; a query that sees no key on either side must not produce inf - inf.
    shift = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    weight_a, weight_b = jnp.exp(lse_a - shift), jnp.exp(lse_b - shift)
    total = weight_a + weight_b
    seen = total > 0
    safe = jnp.where(seen, total, 1.0)
    out = out_a * (weight_a / safe)[..., None] + out_b * (weight_b / safe)[..., None]
    return out.astype(out_a.dtype), jnp.where(seen, shift + jnp.log(safe), -jnp.inf)


def self_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    causal: bool,
    segment_bound: int | None = None,
    aligned: bool = False,
    backend: str = "auto",
    forward_only: bool = False,
) -> Float[Array, "B T N H"]:
    """Attention of rows to themselves within segments; see `attend` and `videoauto_jax.kernels.mask.packed` for the
    arguments."""
    mask = packed(segment_ids, causal=causal, bound=segment_bound, aligned=aligned)
    return attend(q, k, v, mask, backend=backend, forward_only=forward_only)[0]


def group_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    prompt_length: int,
    segment_bound: int | None = None,
    backend: str = "auto",
) -> Float[Array, "B T N H"]:
    """Causal attention of group rows `[prompt | branch 1 | branch 2 | …]`: a branch sees the prompt and itself.

    Args:
        q, k, v: projections of the whole row.
        segment_ids: 1 on the prompt, 2, 3, … on branches, 0 on padding. The prompt is padded on the right.
        prompt_length: static length of the prompt's part, `P`; branches are packed in the remaining `T - P` slots.
        segment_bound: static upper bound on the length of a branch.
        backend: see `attend`.
    """
    parts = lambda x: (x[:, :prompt_length], x[:, prompt_length:])  # noqa: E731
    masks = group_masks(*parts(segment_ids), segment_bound=segment_bound)
    return attend_group(*map(parts, (q, k, v)), masks, backend=backend)


GroupMasks = tuple[Mask, Mask, Mask]
"""What a prompt sees of itself, and branches of the prompt and of their own part."""


def group_masks(
    prompt_ids: Int[Array, "B P"], branch_ids: Int[Array, "B X"], *, segment_bound: int | None = None
) -> GroupMasks:
    """The masks of group rows, from their segments; see `group_attention`."""
    to_itself = packed(prompt_ids, causal=True, aligned=True)
    to_prompt = shared(branch_ids > 0, prompt_ids > 0, aligned=True)
    return to_itself, to_prompt, packed(branch_ids, causal=True, bound=segment_bound)


def attend_group(
    q: tuple[Array, Array], k: tuple[Array, Array], v: tuple[Array, Array], masks: GroupMasks, *, backend: str = "auto"
) -> Float[Array, "B T N H"]:
    """Attention of group rows of which each array is given in its two parts, the prompt's and the branches'."""
    to_itself, to_prompt, own = masks
    prompt_out, _ = attend(q[0], k[0], v[0], to_itself, backend=backend)
    if q[1].shape[1] == 0:
        return prompt_out
    part = attend(q[1], k[0], v[0], to_prompt, backend=backend)
    branch_out, _ = merge(part, attend(q[1], k[1], v[1], own, backend=backend))
    return jnp.concatenate([prompt_out, branch_out], axis=1)


def decode_attention(
    q: Float[Array, "B G N H"],
    k: Float[Array, "B G K H"],
    v: Float[Array, "B G K H"],
    cache: DecodeCache,
    layer: Int[Array, ""],
    *,
    backend: str = "auto",
) -> Float[Array, "B G N H"]:
    """One decoding step of `G` branches per prompt: the prompt's keys are read once for all of them.

    Args:
        q, k, v: of each branch's newest token, which is not in the cache yet: so the cache is only read.
        cache: keys and values of all layers.
        layer: which of them.
        backend: "composed" (`attend` and `merge`), "triton", or "auto".

    Raises:
        BackendError: see `attend`.
    """
    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    newest = v.astype(q.dtype), jnp.sum(q.astype(jnp.float32) * k, axis=-1) * q.shape[-1] ** -0.5
    return merge(decode_partial(q, cache, layer, backend=backend), newest)[0]


def decode_partial(
    q: Float[Array, "B G N H"], cache: DecodeCache, layer: Int[Array, ""], *, backend: str = "auto"
) -> Partial:
    """Attention of one token per branch to the shared prompt and to the branch's own cache. Not differentiable.

    On a mesh whose `context` axis divides the prompt, each device reads its part of it, and the parts are merged.

    Raises:
        BackendError: see `attend`.
    """
    _check_decode_shapes(q, cache)
    mask = shared(jnp.ones(cache.lengths.shape, bool), cache.segments > 0, aligned=True)
    arguments = q, cache.prompt_k, cache.prompt_v, mask, cache.k, cache.v, cache.lengths, layer
    module = backends.choose("decode", backend, *arguments)
    decode, axis = functools.partial(module.decode, reach=cache.reach), context_axis(cache.prompt_k.shape[2])
    if module.XLA_SPLITS and axis is None:
        return decode(*arguments)
    axes = "B.K", ".BPK", ".BPK", "B", ".B..K", ".B..K", "B", ""
    return over_mesh(functools.partial(_part_of_prompt, decode, axis), arguments, axes, ("B.K", "B.K"))


def _part_of_prompt(decode: Callable[..., Partial], axis: str | None, q, k, v, mask, own_k, own_v, lengths, layer):
    """What this device has of the prompt, merged with what the others along `axis` have; the first adds the branches'
    own keys, which all have."""
    if axis is None:
        return decode(q, k, v, mask, own_k, own_v, lengths, layer)
    index, keys = jax.lax.axis_index(axis), k.shape[2]
    lengths = jnp.where(index == 0, lengths, 0)
    return merged_over(axis, *decode(q, k, v, mask.of_keys(index * keys, keys), own_k, own_v, lengths, layer))


def _check_decode_shapes(q: Array, cache: DecodeCache) -> None:
    """See `_check_shapes`."""
    (rows, branches, heads, size), (layers, _, prompt, kv_heads, _) = q.shape, cache.prompt_k.shape
    slots = cache.k.shape[3]
    expected = {
        "prompt_k": (cache.prompt_k, (layers, rows, prompt, kv_heads, size)),
        "prompt_v": (cache.prompt_v, (layers, rows, prompt, kv_heads, size)),
        "segments": (cache.segments, (rows, prompt)),
        "k": (cache.k, (layers, rows, branches, slots, kv_heads, size)),
        "v": (cache.v, (layers, rows, branches, slots, kv_heads, size)),
        "lengths": (cache.lengths, (rows, branches)),
    }
    for name, (x, shape) in expected.items():
        if x.shape != shape:
            what = f"{name} of the cache is {list(x.shape)}, and with q {list(q.shape)} would be {list(shape)}"
            raise BackendError(what, fix="See the shapes of `DecodeCache`")
    if heads % kv_heads:
        raise BackendError(f"{heads} query heads are no multiple of {kv_heads} key/value heads")
