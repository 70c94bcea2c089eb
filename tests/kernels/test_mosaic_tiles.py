"""The plans of the Hopper kernels: no allowed pair is left out, none goes without its mask, little is wasted."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videoauto_jax.kernels.mask import Mask, packed
from videoauto_jax.kernels.mosaic_tiles import TILE, plan_keys, plan_queries

LENGTH = 4 * TILE


def written_out(plan, blocks):
    """Visited and whole blocks of each tile."""
    index = np.arange(blocks)
    first, whole_first, whole_end, end = (np.asarray(plan)[..., i, None] for i in range(4))
    assert ((first <= whole_first) & (whole_first <= whole_end) & (whole_end <= end)).all()
    return (first <= index) & (index < end), (whole_first <= index) & (index < whole_end)


def per_block(allowed, tile, block, reduce):
    rows, down, across = allowed.shape
    return reduce(reduce(allowed.reshape(rows, down // tile, tile, across // block, block), axis=4), axis=2)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), block=st.sampled_from([64, 128]), granularity=st.sampled_from([1, 64, 128]))
def test_plans_of_any_ranges_are_safe(seed, block, granularity):
    ends = np.random.default_rng(seed).integers(0, LENGTH // granularity + 1, (2, 1, LENGTH // granularity))
    start, stop = np.repeat(np.sort(ends, axis=0), granularity, axis=2) * granularity
    mask = Mask(jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32))
    allowed = np.array(mask.allowed(LENGTH))
    for plan, pairs in ((plan_queries(mask, block), allowed), (plan_keys(mask, block, LENGTH), allowed.swapaxes(1, 2))):
        visited, whole = written_out(plan, LENGTH // block)
        assert (visited >= per_block(pairs, TILE, block, np.any)).all()
        assert (whole <= per_block(pairs, TILE, block, np.all)).all()


@pytest.mark.parametrize("causal", [True, False])
def test_packed_rows_visit_only_their_own_blocks(causal):
    ids = np.repeat([1, 2, 2, 3, 3, 3, 0, 0], TILE // 2)[None]
    mask = packed(jnp.asarray(ids), causal=causal)
    allowed = np.array(mask.allowed(LENGTH))
    for plan, pairs in ((plan_queries(mask, 64), allowed), (plan_keys(mask, 64, LENGTH), allowed.swapaxes(1, 2))):
        visited, whole = written_out(plan, LENGTH // 64)
        np.testing.assert_array_equal(visited, per_block(pairs, TILE, 64, np.any))
        np.testing.assert_array_equal(whole, per_block(pairs, TILE, 64, np.all))
