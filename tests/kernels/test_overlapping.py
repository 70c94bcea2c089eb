"""One packed row cut into overlapping pieces for a mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from videoauto_jax.kernels import overlapping
from videoauto_jax.kernels.attention import self_attention
from videoauto_jax.models.vision import segment_attention

LENGTH, BOUND = 256, 16


@pytest.fixture
def mesh():
    return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def patches(dense):
    ids = dense.segments(0, 1, LENGTH, longest=BOUND, padding=20)[0]
    return *(x[0] for x in dense.arrays(0, 1, LENGTH, LENGTH, heads=4, kv_heads=4, size=16)), ids


def test_pieces_are_as_many_as_pay(mesh):
    assert overlapping.pieces(LENGTH, BOUND) == 1  # no mesh
    with jax.set_mesh(mesh):
        assert overlapping.pieces(256, 16) == 8
        assert overlapping.pieces(256, 40) == 4  # eight pieces would be shorter than a segment
        assert overlapping.pieces(256, 128) == 1  # two would overlap whole
        assert overlapping.pieces(250, 16) == 2
        assert overlapping.pieces(16, 64) == 1


def test_what_is_cut_is_joined_again():
    x = np.arange(24, dtype=np.int32).reshape(12, 2)
    pieces = overlapping.cut(x, 3, 2)
    np.testing.assert_array_equal(pieces[1], x[2:10])
    np.testing.assert_array_equal(pieces[0, :2], 0)
    np.testing.assert_array_equal(overlapping.join(pieces, 2), x)


def test_patches_are_split_over_the_mesh(dense, mesh):
    """The same values and gradients; an eighth of the work and what overlaps; patches of neighbours only are moved."""
    q, k, v, ids = patches(dense)
    one = lambda q, k, v: self_attention(q[None], k[None], v[None], ids[None], causal=False, segment_bound=BOUND)[0]  # noqa: E731
    expected, vjp = jax.vjp(jax.jit(one), q, k, v)
    rows = jax.NamedSharding(mesh, P(("data", "fsdp")))
    alone = jax.jit(one).lower(q, k, v).compile().cost_analysis()["flops"]
    with jax.set_mesh(mesh):
        split = jax.jit(lambda q, k, v: segment_attention(q, k, v, ids, BOUND), in_shardings=(rows,) * 3)
        program = split.lower(q, k, v).compile()
        placed = jax.device_put((q, k, v), rows)
        found, split_vjp = jax.vjp(split, *placed)
        bars = split_vjp(found)
    assert program.cost_analysis()["flops"] < alone * (1 / 8 + 2 * BOUND / LENGTH) * 1.3
    assert "all-gather" not in program.as_text()
    for got, wanted in zip((found, *bars), (expected, *vjp(expected))):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
