"""Advantages against the published table and the papers' formulas in float64."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.errors import ConfigError
from videoauto_jax.train.grpo import group_advantages, zero_variance_groups

ROWS = json.loads((Path(__file__).parents[1] / "data" / "grpo_cases.json").read_text())["advantages"]


def _one_by_one(rewards, group_size, kind):
    """GRPO 2402.03300, Dr. GRPO 2503.20783, RLOO 2402.14740, in float64."""
    out = []
    for group in np.asarray(rewards, np.float64).reshape(-1, group_size):
        for i, reward in enumerate(group):
            if kind == "leave_one_out":
                out.append(reward - np.mean(np.delete(group, i)))
            else:
                out.append((reward - group.mean()) / (group.std(ddof=1) + 1e-4 if kind == "group_std" else 1))
    return out


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row["rewards"])[:24])
def test_published_rows(row):
    rewards = jnp.asarray(row["rewards"], jnp.float32)
    np.testing.assert_allclose(group_advantages(rewards, row["G"]), row["adv"], atol=3e-6)
    np.testing.assert_array_equal(zero_variance_groups(rewards, row["G"]), row["std_zero"])


@pytest.mark.parametrize("kind", ["group_std", "no_std", "leave_one_out"])
@pytest.mark.parametrize("group_size", [2, 5, 16])
def test_formula(kind, group_size):
    rewards = np.random.default_rng(group_size).choice([0.0, 0.9, 1.0, 2.1, 3.0], 6 * group_size).astype(np.float32)
    advantages = jax.jit(group_advantages, static_argnames=("group_size", "kind"))(rewards, group_size, kind=kind)
    np.testing.assert_allclose(advantages, _one_by_one(rewards, group_size, kind), atol=1e-5)


@pytest.mark.parametrize("kind", ["group_std", "no_std", "leave_one_out"])
def test_equal_rewards_teach_exactly_nothing(kind):
    # 2.1 is not a binary fraction: the float32 mean of sixteen differs from it in the last place.
    assert not np.any(group_advantages(jnp.full(32, 2.1), 16, kind=kind))
    assert np.all(zero_variance_groups(jnp.full(32, 2.1), 16))


def test_bad_groups_are_named():
    with pytest.raises(ConfigError, match="groups of 3"):
        group_advantages(jnp.zeros(8), 3)
    with pytest.raises(ConfigError, match="at least 2"):
        group_advantages(jnp.zeros(8), 1)
    with pytest.raises(ConfigError, match="group_std"):
        group_advantages(jnp.zeros(8), 4, kind="std")


@pytest.mark.parametrize("kind", ["group_std", "no_std", "leave_one_out"])
def test_branches_that_failed_belong_to_no_group(kind):
    """The others have the advantages of a smaller group, whatever the failed ones' rewards would have been."""
    rng = np.random.default_rng(0)
    rewards, sound = rng.choice([0.0, 0.9, 2.1], (4, 5)).astype(np.float32), rng.random((4, 5)) < 0.6
    sound[0], sound[1], rewards[~sound] = False, [False, True, False, False, False], np.nan
    found = group_advantages(rewards.ravel(), 5, kind=kind, sound=sound.ravel()).reshape(4, 5)
    for row, group, there in zip(found, rewards, sound):
        left = group[there]
        expected = _one_by_one(left, len(left), kind) if len(left) > 1 else np.zeros(len(left))
        np.testing.assert_allclose(row[there], expected, atol=1e-5)
        assert not np.any(row[~there])
    zero = zero_variance_groups(rewards.ravel(), 5, sound=sound.ravel())
    assert zero.tolist() == [len(set(group[there])) < 2 for group, there in zip(rewards, sound)]
