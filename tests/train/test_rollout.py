"""Branches to rewards and signals: over-long punishment, dynamic sampling, what is counted, and the metrics."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.errors import ConfigError, TrainingError
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.rewards import FALLBACK_BONUS, RewardPool, Rewards
from videoauto_jax.sampling.answer import make_answer
from videoauto_jax.sharding import MeshConfig, make_mesh
from videoauto_jax.train.evaluation import Evaluation, hold_out
from videoauto_jax.train.flops import group_forward_flops, group_update_flops
from videoauto_jax.train.groups import pack_groups
from videoauto_jax.train.journal import (
    check_finite,
    rewind_samples,
    warn_about_context,
    warn_about_equal_rewards,
    write_sample,
)
from videoauto_jax.train.loop import GRPOTrainer, warn_about_rows
from videoauto_jax.train.loss_config import GRPOLossConfig
from videoauto_jax.train.metrics import Metrics
from videoauto_jax.train.pace import Clock
from videoauto_jax.train.recipe import GRPOConfig, RewardConfig, RolloutConfig
from videoauto_jax.train.rollout import Graded, counted_branches, grade_groups, overlong_penalty, score_share
from videoauto_jax.train.rollout_metrics import answer_table, confidence_metrics, rollout_metrics
from videoauto_jax.train.step import NONFINITE_STREAK, GroupSignals

FALLBACK = "Let's analyze the problem step by step."


def config(**changes):
    return GRPOConfig(**{"model": "m", "output": "o", "prompts": 4, "updates": 2} | changes)


def answer(text, tokens=5, confidence=0.5, finish=1):
    return make_answer(text, np.arange(tokens), np.zeros(tokens), np.zeros(tokens), confidence, finish, tokens)


def twice(first, second):
    return answer(f"\\boxed{{{first}}}<think>so</think>\\boxed{{{second}}}")


def item(number, **facts):
    sample = Sample([{"role": "user", "content": "?"}], "A", "exact_match", "toy", f"toy/{number}", **facts)
    return number, sample, SimpleNamespace(token_ids=np.arange(7))


def graded(number, totals, **facts):
    answers = [answer("x", **facts) for _ in totals]
    return Graded(item(number), answers, [Rewards(0.0, 0.0, 0.0)] * len(totals), np.array(totals, np.float32))


def test_soft_over_long_punishment():
    """DAPO (arXiv 2503.14476), eq. 13, with L_max = 100 and L_cache = 20, times the penalty."""
    rule = RewardConfig(overlong_buffer=20, overlong_penalty=0.5)
    for tokens, expected in ((10, 0), (80, 0), (85, 0.125), (90, 0.25), (100, 0.5)):
        assert overlong_penalty(tokens, 100, rule) == pytest.approx(expected)
    assert overlong_penalty(100, 100, RewardConfig()) == 0


def test_rewards_of_the_three_forms():
    texts = ["\\boxed{A}<think>so</think>\\boxed{B}", "\\boxed{A}", "<think>so</think>\\boxed{A}"]
    expected = {"answer_twice": [1.9, None, None], "direct": [1.0, 2.0, 1.0], "cot": [0.0, 1.0, 2.0]}
    with RewardPool(1) as pool:
        for form, totals in expected.items():
            weights = (0.9, 1.1, 1.0) if form == "answer_twice" else (1.0, 0.0, 1.0)
            rule = config(reward=RewardConfig(form=form, weights=weights))
            groups = [item(0)], [[answer(text) for text in texts]], rule
            (group,) = grade_groups([score_share(pool, *groups)], *groups)
            for found, total in zip(group.totals, totals):
                assert total is None or found == pytest.approx(total), form


def test_what_is_counted():
    cut = [answer("x", finish=3), answer("x")]
    group = Graded(item(0), cut, [Rewards(0, 0, 0)] * 2, np.array([0.0, 1.0], np.float32))
    equal = Graded(item(0), cut, group.rewards, np.array([1.0, 1.0], np.float32))
    assert counted_branches(group, config()).tolist() == [True, True]
    assert counted_branches(group, config(mask_truncated=True)).tolist() == [False, True]
    assert counted_branches(equal, config()).tolist() == [True, True]
    for mode in ("drop", "refill"):
        assert counted_branches(equal, config(dynamic_sampling=mode)).tolist() == [False, False]
        assert counted_branches(group, config(dynamic_sampling=mode)).tolist() == [True, True]


def test_a_branch_without_numbers_is_not_counted_and_may_be_empty():
    """It has no tokens where the prompt's own logits were not numbers."""
    answers = [answer("", tokens=0, finish=4), answer("x"), answer("x", finish=4)]
    group = Graded(item(0), answers, [Rewards(0, 0, 0)] * 3, np.array([0.0, 1.0, 0.0], np.float32))
    assert counted_branches(group, config()).tolist() == [False, True, False] and not group.teaches
    prompts = ModelInputs(np.ones((1, 7), np.int32), np.zeros((3, 1, 7), np.int32), np.ones((1, 7), np.int32),
                          np.full((1, 7), -1), None)  # fmt: skip
    batch = pack_groups(prompts, [7], [[each.token_ids for each in answers]], bound=5)
    assert batch.mask.sum(axis=-1).tolist() == [[0, 5, 5]]
    assert batch.inputs.segment_ids[0, 7:17].tolist() == [3] * 5 + [4] * 5


@pytest.mark.parametrize(("mode", "expected"), [("off", [0, 1, 2, 3]), ("drop", [0, 1, 2, 3]),
                                                ("refill", [1, 4, 6, 7])])  # fmt: skip
def test_groups_that_teach_nothing_are_replaced(mode, expected):
    """DAPO's dynamic sampling: groups 0, 2, 3 and 5 are all right or all wrong."""
    trainer = GRPOTrainer.__new__(GRPOTrainer)
    trainer.config = config(dynamic_sampling=mode)
    drawn = []

    def draw(index, attempt, clock):
        numbers = range(4 * attempt, 4 * attempt + 4)
        drawn.append(attempt)
        groups = [graded(n, [1.0, 1.0] if n in (0, 2, 3, 5) else [0.0, 1.0]) for n in numbers]
        return [groups[:2], groups[2:]], "pending"

    trainer._draw, trainer._grades, trainer._prepare = draw, lambda parts, pending: parts, lambda items: "prompts"

    metrics = Metrics()

    def written():
        parts, grades = trainer._write_groups(0, Clock(), metrics)
        return parts, [group.item[0] for part in grades() for group in part]

    parts, numbers = written()
    assert numbers == expected
    if mode == "refill":
        assert metrics.values() == {"refill/groups": 8, "refill/frac_reward_zero_std": 0.5}
        assert drawn == [0, 1] and [[n for n, *_ in part.items] for part in parts] == [[1, 4], [6, 7]]
        trainer.config = config(dynamic_sampling=mode, max_refills=0)
        assert written()[1] == [1, 0, 2, 3]


def test_a_round_without_anything_to_learn_is_announced(caplog):
    warn_about_equal_rewards([graded(0, [1.0, 1.0]), graded(1, [0.0, 1.0])], 4)
    assert not caplog.records
    warn_about_equal_rewards([graded(0, [1.0, 1.0]), graded(1, [0.5, 0.5])], 4)
    assert "round 5: all branches of each of the 2 groups have the same reward (0.5, 1)" in caplog.text


def test_rows_that_devices_cannot_share_are_announced(caplog):
    warn_about_rows(config(), 2)
    assert not caplog.records
    warn_about_rows(config(), 8)
    assert "2 group rows, which 8 data shards" in caplog.text and "Set subgroups=4" in caplog.text


def test_rows_that_context_cannot_split_are_announced(caplog):
    warn_about_context(make_mesh(MeshConfig(tensor=2)), DataConfig(prompt_lengths=(63,)))
    warn_about_context(make_mesh(MeshConfig(context=4)), DataConfig(branch_lengths=(24, 80)))
    assert not caplog.records
    warn_about_context(make_mesh(MeshConfig(context=4)), DataConfig(branch_lengths=(24, 36, 44)))
    assert "mesh.context=4 cannot split rows where data.branch_lengths is 36, 44" in caplog.text
    assert "multiples of 8" in caplog.text


def test_the_four_way_table_counts_no_bonus():
    pairs = [("A", "A"), ("A", "B"), ("B", "A"), ("B", "B"), (FALLBACK, "A"), (FALLBACK, "B")]
    answers = [twice(*pair) for pair in pairs]
    rewards = [Rewards(first == "A", (second == "A") + FALLBACK_BONUS * (first == FALLBACK and second == "A"), 1.0)
               for first, second in pairs]  # fmt: skip
    table = {name.split("/")[1]: pair[0] for name, pair in answer_table(answers, rewards).items()}
    assert table == {"right_right": 1, "right_wrong": 1, "wrong_right": 2, "wrong_wrong": 2}


def test_think_ratio_at_thresholds():
    answers = [answer("x", confidence=value) for value in (0.995, 0.985, 0.96, 0.92, -1.0)]
    found = {name: total / count for name, (total, count) in confidence_metrics(answers).items()}
    assert found["think_ratio"] == 0.6 and found["think_ratio/0.9"] == 0.2 and found["think_ratio/0.99"] == 0.8
    assert found["confidence"] == pytest.approx(np.mean([0.995, 0.985, 0.96, 0.92]))
    found = rollout_metrics([graded(0, [1.0, 3.0]), graded(1, [2.0, 2.0])])
    assert found["reward"] == (8.0, 4.0)
    assert found["reward_std"] == (pytest.approx(2**0.5), 2.0)  # as TRL and torch: n - 1


def test_held_out_samples_share_no_visual_with_the_others():
    def sample(number, video):
        content = [{"type": "video", "video": video}] if video else []
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": "?"}]}]
        return Sample(messages, "A", "exact_match", "toy", f"toy/{number}")

    samples = [sample(n, f"{n // 3}.mp4" if n < 18 else None) for n in range(24)]
    kept, held = hold_out(samples, 5, seed=1)
    assert len(held) == 5 and not {s.media or s.id for s in kept} & {s.media or s.id for s in held}
    assert hold_out(samples, 5, seed=1) == (kept, held) != hold_out(samples, 5, seed=2)
    assert hold_out(samples, 0, seed=1) == (samples, [])


def test_a_held_out_sample_that_breaks_its_decoder_ends_nothing():
    def encode(messages):
        raise RuntimeError("what decoders raise")

    evaluation = SimpleNamespace(processor=SimpleNamespace(encode=encode))
    assert Evaluation._encoded(evaluation, Sample([], "A", "exact_match", "toy", "toy/1")) is None


def test_operations_of_a_forward_pass():
    text = SimpleNamespace(
        hidden_size=8, intermediate_size=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=2, vocab_size=32,
        experts=None,
    )  # fmt: skip
    weights = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)
    tokens, pairs = 10 + 2 + 4, sum(range(1, 11)) + (11 + 12) + (11 + 12 + 13 + 14)
    scores_and_sums = 3 * 4 * (2 * 2 + 2 * 2) * pairs  # layers, heads, two products of head size 2
    head = 2 * 8 * 32 * (2 + 4)
    products = 2 * weights * tokens + head
    assert group_forward_flops(text, [10], [[2, 4]]) == products + scores_and_sums
    assert group_update_flops(text, [10], [[2, 4]]) == 3 * (products + scores_and_sums)
    assert group_update_flops(text, [10], [[2, 4]], adapters=True) == 2 * products + 3 * scores_and_sums


def test_what_the_recipe_says_of_branches_reaches_the_sampler_and_the_loss():
    stated = {
        "max_new_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
    }
    told = RolloutConfig(**stated).sampling(prompts=3)
    assert {name: getattr(told, name) for name in stated} == stated and (told.mode, told.prompts) == ("record", 3)
    usual = RolloutConfig().sampling()  # the paper's: the whole distribution at temperature 1
    assert (usual.temperature, usual.top_p, usual.top_k, usual.min_p, usual.repetition_penalty) == (1, 1, 0, 0, 1)
    for name, value in (("top_p", 0.0), ("top_k", -1), ("min_p", 2.0), ("max_new_tokens", 0)):
        with pytest.raises(ConfigError, match=rf"{name}="):
            RolloutConfig(**{name: value})
    loss = GRPOLossConfig(loss_type="dr_grpo")
    assert config(loss=loss, rollout=RolloutConfig(max_new_tokens=9)).policy_loss.max_completion_length == 9
    loss = GRPOLossConfig(loss_type="dr_grpo", max_completion_length=5)
    assert config(loss=loss).policy_loss == loss


def test_sample_rollouts_of_rounds_that_come_again_are_dropped(tmp_path):
    rewind_samples(tmp_path, 0)
    for index in range(4):
        write_sample(tmp_path, index, graded(index, [0.0, 1.0]))
    rewind_samples(tmp_path, 2)
    write_sample(tmp_path, 2, graded(7, [0.0, 1.0]))
    records = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [(record["round"], record["id"]) for record in records] == [(1, "toy/0"), (2, "toy/1"), (3, "toy/7")]


def test_gradients_that_stay_nonfinite_end_the_run_with_their_batch(tmp_path):
    signals = GroupSignals(jnp.ones((2, 1)), jnp.ones((2, 1), bool), jnp.full((2, 1, 2), jnp.nan))
    part = ({"tokens": np.ones((2, 3))}, signals), ["toy/3", "toy/8"], tmp_path, 3
    check_finite({NONFINITE_STREAK: (jnp.int32(2), 1)}, *part)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TrainingError, match="3 updates in a row had no finite gradient.*learning_rate"):
        check_finite({NONFINITE_STREAK: (jnp.int32(3), 1)}, *part)
    saved = np.load(tmp_path / "nonfinite" / "batch.npz")
    assert set(saved) == {"0.tokens", "1.advantages", "1.counted", "1.sampling"} and np.isnan(saved["1.sampling"]).all()
    assert '"toy/8"' in (tmp_path / "nonfinite" / "samples.json").read_text()
