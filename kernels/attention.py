"""The attention op: partial attentions that merge.

`attend` gives a partial result and its log-sum-exp; `merge` joins two partials over disjoint keys into the exact
attention over their union. Prompt plus branch, cached decoding and anything that splits keys is this one algebra.

Shapes: `B` rows, `T` queries, `S` keys, `N` query heads, `K` key/value heads (`N` a multiple of `K`), `H` head size.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from videoauto_jax.kernels import reference

Partial = tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Which query may see which key: same non-zero segment and, if causal, a key index not above the query's.

    Attributes:
        query_segments: segment of each query, 0 sees nothing.
        key_segments: segment of each key, 0 is seen by nothing.
        causal: compare row indices; queries and keys then are the same tokens.
        segment_bound: static upper bound on the length of a contiguous segment, or None where segments may be anywhere.
            With a bound, queries and keys must be the same tokens and cost is linear in their number.
    """

    query_segments: Int[Array, "B T"]
    key_segments: Int[Array, "B S"]
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    segment_bound: int | None = dataclasses.field(default=None, metadata={"static": True})


BACKENDS: dict[str, Callable[..., Partial]] = {"reference": reference.attend}


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    *,
    backend: str = "auto",
) -> Partial:
    """Scaled dot-product attention over the keys that `mask` allows; scale is `H ** -0.5`.

    Returns:
        The output in q's dtype, and the natural logarithm of the sum of exponentials in float32. Where a query sees no
        key they are 0 and -inf.

    Raises:
        ValueError: the backend does not exist.
    """
    if backend == "auto":
        backend = "reference"
    if backend not in BACKENDS:
        raise ValueError(f"no attention backend {backend!r}; there are {sorted(BACKENDS)}")
    return BACKENDS[backend](q, k, v, mask)


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
    backend: str = "auto",
) -> Float[Array, "B T N H"]:
    """Attention of rows to themselves within segments."""
    return attend(q, k, v, Mask(segment_ids, segment_ids, causal, segment_bound), backend=backend)[0]


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
        segment_ids: 1 on the prompt, 2, 3, … on branches, 0 on padding (also inside the prompt's part).
        prompt_length: static length of the prompt's part, `P`; branches are packed in the remaining `T - P` slots.
        segment_bound: static upper bound on the length of a branch.
        backend: see `attend`.
    """
    prompt, branch = slice(None, prompt_length), slice(prompt_length, None)
    prompt_segments, branch_segments = segment_ids[:, prompt], segment_ids[:, branch]
    prompt_mask = Mask(prompt_segments, prompt_segments, causal=True)
    prompt_out, _ = attend(q[:, prompt], k[:, prompt], v[:, prompt], prompt_mask, backend=backend)
    to_prompt = Mask((branch_segments > 0).astype(jnp.int32), (prompt_segments > 0).astype(jnp.int32))
    own = Mask(branch_segments, branch_segments, causal=True, segment_bound=segment_bound)
    branch_out, _ = merge(
        attend(q[:, branch], k[:, prompt], v[:, prompt], to_prompt, backend=backend),
        attend(q[:, branch], k[:, branch], v[:, branch], own, backend=backend),
    )
    return jnp.concatenate([prompt_out, branch_out], axis=1)


def decode_attention(
    q: Float[Array, "B G N H"],
    prompt_k: Float[Array, "B P K H"],
    prompt_v: Float[Array, "B P K H"],
    prompt_segments: Int[Array, "B P"],
    k: Float[Array, "B G R K H"],
    v: Float[Array, "B G R K H"],
    lengths: Int[Array, "B G"],
    *,
    backend: str = "auto",
) -> Float[Array, "B G N H"]:
    """One decoding step of `G` branches per prompt: the prompt's keys are read once for all of them.

    Args:
        q: the query of each branch's newest token.
        prompt_k, prompt_v: the shared prompt's cache.
        prompt_segments: non-zero where the prompt has a token.
        k, v: each branch's own cache, the newest token included.
        lengths: filled slots of each branch's own cache.
        backend: see `attend`.
    """
    rows, branches, slots = k.shape[:3]
    everyone = jnp.ones((rows, branches), jnp.int32)
    shared = attend(q, prompt_k, prompt_v, Mask(everyone, (prompt_segments > 0).astype(jnp.int32)), backend=backend)
    filled = (jnp.arange(slots) < lengths[..., None]).astype(jnp.int32)
    flat = lambda x: x.reshape(rows * branches, *x.shape[2:])  # noqa: E731
    own_mask = Mask(jnp.ones((rows * branches, 1), jnp.int32), flat(filled))
    out, lse = attend(flat(q)[:, None], flat(k), flat(v), own_mask, backend=backend)
    own = out.reshape(q.shape), lse.reshape(q.shape[:-1])
    return merge(shared, own)[0]
