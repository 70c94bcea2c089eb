"""The order of prompts is upstream's."""

import numpy as np
import pytest

from videoauto_jax.data.order import Plan, epoch_order, substitute

# Prompts of two epochs, each prompt once, as upstream's sampler emits them: (samples, batch, seed, epoch 1, epoch 2).
UPSTREAM = [
    (7, 3, 42, [1, 6, 3, 5, 4, 0], [5, 3, 2, 4, 0, 1]),
    (8, 4, 42, [6, 3, 0, 7, 2, 1, 4, 5], [4, 1, 7, 6, 3, 2, 0, 5]),
    (5, 2, 0, [4, 0, 1, 3], [3, 4, 0, 1]),
]


@pytest.mark.parametrize("samples, batch, seed, first, second", UPSTREAM)
def test_batches_follow_upstreams_sampler(samples, batch, seed, first, second):
    plan = Plan(samples, batch, seed)
    assert [plan.candidate(position, 0) for position in range(len(first) * 2)] == first + second


def test_permutation_is_torchs():
    torch = pytest.importorskip("torch")
    for samples, seed in [(1, 3), (2, 3), (1000, 123), (4099, 2**32 - 1), (11, 2**40 + 5)]:
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(3):
            expected = torch.randperm(samples, generator=generator).numpy()
            np.testing.assert_array_equal(epoch_order(samples, seed, epoch), expected)


def test_hosts_share_every_global_batch():
    whole = Plan(11, 4, seed=5)
    parts = [Plan(11, 4, seed=5, process_index=host, process_count=2) for host in range(2)]
    for batch in range(5):
        joined = [part.candidate(2 * batch + slot, 0) for part in parts for slot in range(2)]
        assert joined == [whole.candidate(4 * batch + slot, 0) for slot in range(4)]


def test_unshuffled_order_is_the_list():
    plan = Plan(5, 2, seed=0, shuffle=False)
    assert [plan.candidate(position, 0) for position in range(6)] == [0, 1, 2, 3, 0, 1]


def test_substitutes_are_fixed_and_spread():
    drawn = [substitute(10, 42, 0, 3, attempt) for attempt in range(1, 200)]
    assert drawn == [substitute(10, 42, 0, 3, attempt) for attempt in range(1, 200)]
    assert set(drawn) == set(range(10))
