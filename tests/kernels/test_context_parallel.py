"""Rows split over eight devices against dense attention, and the balance of their work."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from videoauto_jax.errors import BackendError
from videoauto_jax.kernels import context_parallel
from videoauto_jax.kernels.attention import group_attention
from videoauto_jax.kernels.context_parallel import zigzag
from videoauto_jax.kernels.mask import packed

DEVICES = 8


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((DEVICES,), ("context",), axis_types=(AxisType.Auto,))


def over(mesh, function, in_specs, out_specs):
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("strategy", ["gather", "ring"])
def test_a_split_row_is_a_whole_row(dense, mesh, strategy, causal):
    length = 6 * DEVICES
    ids = np.concatenate([np.ones((2, 17), np.int32), dense.segments(0, 2, length - 17, longest=20) + 1], axis=1)
    ids[:, -5:] = 0
    mask, order = packed(jnp.asarray(ids), causal=causal), zigzag(length, DEVICES)
    row = P(None, "context")
    split = over(mesh, partial(context_parallel.attend, axis="context", strategy=strategy), (row,) * 5, (row, row))
    back = np.argsort(order)

    def whole(q, k, v):
        out, lse = split(*(x[:, order] for x in (q, k, v, mask.start, mask.stop)))
        return out[:, back], lse[:, back]

    dense.check(whole, dense.arrays(1, 2, length, length, heads=4, kv_heads=2), dense.written_out(ids, causal))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("prompt, branches", [(32, 48), (48, 0)])
def test_a_split_group_row_is_a_whole_one(dense, sizes, prompt, branches):
    """Values and gradients, beside rows and heads that are split too; a prompt with padding, branches, more padding."""
    ids = np.ones((2, prompt + branches), np.int32)
    ids[0, 20:prompt] = 0
    ids[:, prompt:] = dense.segments(0, 2, branches, longest=9) + 1 if branches else 0
    ids[:, prompt + branches - 5 : prompt + branches if branches else 0] = 0
    mesh = jax.make_mesh(sizes, ("context", "data", "tensor"), axis_types=(AxisType.Auto,) * 3)
    q, k, v = dense.arrays(1, 2, *(prompt + branches,) * 2, heads=4, kv_heads=2)
    bar = np.random.default_rng(2).normal(size=q.shape).astype(np.float32)

    def whole(q, k, v):
        return jnp.sum(group_attention(q, k, v, ids, prompt_length=prompt) * bar)

    def split(q, k, v):
        order = context_parallel.row_order(prompt, branches)
        out = context_parallel.group_attention(
            *(x[:, order] for x in (q, k, v)), ids, prompt_length=prompt, backend="reference"
        )
        return jnp.sum(out[:, np.argsort(order)] * bar)

    assert context_parallel.row_order(prompt, branches) is None  # without a mesh
    expected = jax.jit(jax.value_and_grad(whole, (0, 1, 2)))(q, k, v)
    with jax.set_mesh(mesh):
        found = jax.jit(jax.value_and_grad(split, (0, 1, 2)))(q, k, v)
        assert context_parallel.row_order(prompt, branches + 1) is None
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_devices_have_equal_work():
    length = 128 * 2 * DEVICES
    mask = packed(jnp.ones((1, length), jnp.int32), causal=True)
    keys = np.asarray(mask.stop - mask.start)[0]
    work = keys[zigzag(length, DEVICES)].reshape(DEVICES, -1).sum(1)
    assert work.max() / work.mean() < 1.05
    assert keys.reshape(DEVICES, -1).sum(1).max() / work.mean() > 1.8  # what plain chunks would cost


def test_blocks_visited_are_as_balanced_as_the_work():
    tiles = pytest.importorskip("videoauto_jax.kernels.mosaic_tiles")
    length = 4 * tiles.TILE * 2 * DEVICES
    mask, order = packed(jnp.ones((1, length), jnp.int32), causal=True), zigzag(length, DEVICES)
    shards = [x[:, order].reshape(DEVICES, -1) for x in (mask.start, mask.stop)]
    plan = np.asarray(tiles.plan_queries(type(mask)(*shards), 128))
    blocks = (plan[..., 3] - plan[..., 0]).sum(1)
    assert blocks.max() / blocks.mean() < 1.05


def test_what_cannot_be_split_is_said():
    with pytest.raises(BackendError, match="Pad rows to a multiple of 16"):
        zigzag(40, DEVICES)
