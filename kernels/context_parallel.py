"""Attention of rows that are split over a mesh axis: of a model's rows (`group_attention`,
`prefix_attention`), or, inside `shard_map`, of any that see themselves (`attend`).

A causal row's end costs more than its beginning. Cut into twice as many chunks as there are devices, chunk `i` and the
`i`-th from the end make equal work: device `i` holds both, one after the other (`zigzag`). Ranges of keys stay in the
row's own order, so a mask is what it always is, computed once for the whole row and split with the queries:

    mask = packed(segment_ids, causal=True)
    order = zigzag(T, devices)
    shard_map(partial(attend, axis="context"), in_specs=P(None, "context"), …)(q[:, order], k[:, order], v[:, order],
        mask.start[:, order], mask.stop[:, order])
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from videoauto_jax.errors import BackendError
from videoauto_jax.kernels import attention
from videoauto_jax.kernels.attention import Partial, merge
from videoauto_jax.kernels.mask import Mask, packed
from videoauto_jax.kernels.sharded import CONTEXT, context_axis, context_devices


def zigzag(length: int, devices: int) -> Int[np.ndarray, "T"]:
    """Where each token of the split order comes from; its `argsort` leads back.

    Raises:
        BackendError: the length is not a multiple of `2 * devices`.
    """
    if length % (2 * devices):
        fix = f"Pad rows to a multiple of {2 * devices}"
        raise BackendError(f"{length} tokens cannot be split over {devices} devices evenly", fix=fix)
    chunks = np.arange(length, dtype=np.int32).reshape(2 * devices, -1)
    return chunks[chunk_order(devices)].reshape(-1)


def chunk_order(devices: int) -> Int[np.ndarray, "C2"]:
    """The chunks of all devices, in the order of devices: 0, 2C-1, 1, 2C-2, …"""
    first = np.arange(devices)
    return np.stack([first, 2 * devices - 1 - first], axis=1).reshape(-1)


def row_order(*parts: int) -> Int[np.ndarray, "T"] | None:
    """The order in which rows are split evenly over the mesh's `context` axis: every device has its share of each part
    (a prompt's, the branches'), in `zigzag`. None where the mesh in use has no such axis or a part is no multiple of
    twice its devices: rows are then whole on every device."""
    devices = context_devices()
    if devices == 1 or any(part % (2 * devices) for part in parts):
        return None
    starts = np.cumsum([0, *parts])
    shares = [start + zigzag(part, devices).reshape(devices, -1) for start, part in zip(starts, parts)]
    return np.concatenate(shares, axis=1).reshape(-1)


def group_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    *,
    prompt_length: int,
    backend: str = "auto",
) -> Float[Array, "B T N H"]:
    """`kernels.attention.group_attention` of rows split over `context`, whose keys every device gathers; not to be
    called inside `shard_map`.

    Args:
        q, k, v: in `row_order(prompt_length, T - prompt_length)`, which must not be None.
        segment_ids: in the row's own order.
        prompt_length: as there; `T` for rows that are all prompt.
        backend: see `kernels.attention.attend`.
    """
    here = prompt_length // context_devices()
    masks = attention.group_masks(segment_ids[:, :prompt_length], segment_ids[:, prompt_length:])
    parts = lambda x: (x[:, :here], x[:, here:])  # noqa: E731

    def local(q: Array, k: Array, v: Array, masks: attention.GroupMasks) -> Array:
        keys, values = (tuple(_whole(part, CONTEXT) for part in parts(x)) for x in (k, v))
        return attention.attend_group(parts(q), keys, values, masks, backend=backend)

    return _over_context(local, (_ROW,) * 4, _ROW)(q, k, v, tuple(map(_share, masks)))


def prefix_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segment_ids: Int[Array, "B T"],
    earlier: tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]] | None,
    seen: Mask,
    *,
    backend: str = "auto",
) -> tuple[Float[Array, "B T N H"], tuple[Float[Array, "B T K H"], Float[Array, "B T K H"]]]:
    """Causal attention of rows split over `context` to themselves and to keys and values that came before them.

    Args:
        q, k, v: in `row_order(T)`, which must not be None.
        segment_ids: in the row's own order; each row is one segment, padded on the right.
        earlier: keys and values before the row; None if there are none.
        seen: which of them the row's queries see, in the row's own order.
        backend: see `kernels.attention.attend`.

    Returns:
        The output in the order of `q`, and the row's keys and values in its own order, whole on every device.
    """
    own, axis = _share(packed(segment_ids, causal=True, aligned=True)), earlier and context_axis(earlier[0].shape[1])

    def local(q: Array, k: Array, v: Array, own: Mask, seen: Mask, earlier: tuple[Array, Array]) -> tuple:
        k, v = _whole(k, CONTEXT), _whole(v, CONTEXT)
        part = attention.attend(q, k, v, own, backend=backend, forward_only=True)
        if axis:  # gathered here, a layer at a time: XLA by itself would gather all layers' before the first
            earlier = jax.lax.all_gather(earlier, axis, axis=1, tiled=True)
        if earlier is not None:
            part = merge(attention.attend(q, *earlier, seen, backend=backend, forward_only=True), part)
        return part[0], (k, v)

    specs = *(_ROW,) * 5, PartitionSpec(None, axis)
    return _over_context(local, specs, (_ROW, PartitionSpec()))(q, k, v, own, _share(seen), earlier)


_ROW = PartitionSpec(None, CONTEXT)


def _over_context(local: Callable, operands: tuple, results: Any) -> Callable:
    """`local` on each device's part of its operands, which their specs tell."""
    return jax.shard_map(local, in_specs=operands, out_specs=results, axis_names={CONTEXT}, check_vma=False)


def _share(mask: Mask) -> Mask:
    """In the order in which queries are split. Queries are then no longer the keys' own tokens."""
    order = zigzag(mask.start.shape[1], context_devices())
    kept = {"kind": "shared", "aligned": mask.aligned} if mask.kind == "shared" else {}
    return Mask(mask.start[:, order], mask.stop[:, order], **kept)


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    start: Int[Array, "B T"],
    stop: Int[Array, "B T"],
    *,
    axis: str,
    strategy: str = "gather",
    backend: str = "auto",
) -> Partial:
    """`kernels.attention.attend` of a row of which every device holds two chunks.

    Args:
        q, k, v: this device's part, in the order of `zigzag`.
        start, stop: ranges of its queries, in keys of the whole row, as `mask.packed` gives them.
        axis: the mesh axis that splits rows.
        strategy: "gather" has each device fetch all keys at once: simplest, and cheap where links are fast (at 128k
            tokens, 8 devices and 8 KV heads, 1 ms of NVLink for 29 ms of attention). "ring" passes keys around while it
            computes and never holds more than two devices' keys; its backward pass computes scores twice.
        backend: see `kernels.attention.attend`.

    Raises:
        BackendError: no such strategy.
    """
    if strategy not in STRATEGIES:
        raise BackendError(f"no strategy {strategy!r}", fix=f"There are: {', '.join(STRATEGIES)}")
    return STRATEGIES[strategy](q, k, v, start, stop, axis, backend)


def _gather(q: Array, k: Array, v: Array, start: Array, stop: Array, axis: str, backend: str) -> Partial:
    """All keys in the row's order, then one call; the transpose of gathering sums their gradients."""
    return attention.attend(q, _whole(k, axis), _whole(v, axis), Mask(start, stop), backend=backend)


def _whole(x: Array, axis: str) -> Array:
    """A row's keys from all devices, in the row's order."""
    chunks = jax.lax.all_gather(x.reshape(x.shape[0], 2, -1, *x.shape[2:]), axis, axis=1, tiled=True)
    return chunks[:, np.argsort(chunk_order(jax.lax.axis_size(axis)))].reshape(x.shape[0], -1, *x.shape[2:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _ring(q: Array, k: Array, v: Array, start: Array, stop: Array, axis: str, backend: str) -> Partial:
    return _ring_forward(q, k, v, start, stop, axis, backend)[0]


def _ring_forward(q: Array, k: Array, v: Array, start: Array, stop: Array, axis: str, backend: str) -> tuple:
    devices, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)

    def step(carry: tuple, distance: Array) -> tuple[tuple, None]:
        k, v, part = carry
        k, v = _pass_on((k, v), axis)
        out, lse = _over_owner(q, k, v, start, stop, (me - distance) % devices, devices, backend)
        return (k, v, merge(part, (out.astype(jnp.float32), lse))), None

    out, lse = _over_owner(q, k, v, start, stop, me, devices, backend)
    first = k, v, (out.astype(jnp.float32), lse)
    (_, _, (out, lse)), _ = jax.lax.scan(step, first, jnp.arange(1, devices))
    out = out.astype(q.dtype)
    return (out, lse), (q, k, v, start, stop, out, lse)


def _ring_backward(axis: str, backend: str, saved: tuple, bars: tuple[Array, Array]) -> tuple:
    """Gradients of keys travel with the keys; each step's is that of its partial under the whole row's log-sum-exp."""
    q, k, v, start, stop, out, lse = saved
    out_bar, lse_bar = bars
    devices, me = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    wide = lambda x: x.astype(jnp.float32)  # noqa: E731
    whole = jnp.sum(wide(out) * wide(out_bar), axis=-1) - lse_bar

    def one(k: Array, v: Array, distance: Array) -> tuple[Array, Array, Array]:
        owner = (me - distance) % devices
        run = lambda q, k, v: _over_owner(q, k, v, start, stop, owner, devices, backend)  # noqa: E731
        (part, part_lse), vjp = jax.vjp(run, q, k, v)
        weight = jnp.where(jnp.isfinite(part_lse), jnp.exp(part_lse - lse), 0.0)
        part_bar = wide(out_bar) * weight[..., None]
        lse_bar = jnp.sum(wide(part) * part_bar, axis=-1) - weight * whole
        return vjp((part_bar.astype(part.dtype), lse_bar))

    def step(carry: tuple, distance: Array) -> tuple[tuple, None]:
        k, v, q_bar, k_bar, v_bar = carry
        k, v, k_bar, v_bar = _pass_on((k, v, k_bar, v_bar), axis)
        bars = one(k, v, distance)
        return (k, v, *(total + wide(bar) for total, bar in zip((q_bar, k_bar, v_bar), bars))), None

    first = k, v, *map(wide, one(k, v, jnp.int32(0)))
    (_, _, q_bar, k_bar, v_bar), _ = jax.lax.scan(step, first, jnp.arange(1, devices))
    k_bar, v_bar = _pass_on((k_bar, v_bar), axis)  # back to where the keys live
    return q_bar.astype(q.dtype), k_bar.astype(k.dtype), v_bar.astype(v.dtype), None, None


_ring.defvjp(_ring_forward, _ring_backward)

STRATEGIES: dict[str, Callable[..., Partial]] = {"gather": _gather, "ring": _ring}


def _over_owner(q, k, v, start, stop, owner: Array, devices: int, backend: str) -> Partial:
    """Attention to the two chunks of keys that device `owner` holds."""
    size = k.shape[1] // 2
    parts = []
    for chunk, at in ((owner, 0), (2 * devices - 1 - owner, size)):
        mask = Mask(start, stop).of_keys(chunk * size, size)
        parts.append(attention.attend(q, k[:, at : at + size], v[:, at : at + size], mask, backend=backend))
    return merge(*parts)


def _pass_on(arrays: tuple[Array, ...], axis: str) -> tuple[Array, ...]:
    devices = jax.lax.axis_size(axis)
    return jax.lax.ppermute(arrays, axis, [(i, (i + 1) % devices) for i in range(devices)])
