"""From messages to answers: modes, the gate, the format, and which tokens are drawn."""

import copy
import dataclasses

import numpy as np
import pytest

from videoauto_jax.protocol import first_answer_confidence, is_well_formed
from videoauto_jax.protocol.confidence import replay
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig

END = "<|im_end|>"


def test_second_writes_everything_and_measures_confidence(answers, scripts, tiny_processor):
    for mode in ("second", "record"):
        found = answers(mode=mode)
        for prompt, answer in found.items():
            text = "".join(part for part, _ in scripts[prompt])
            assert answer.text == text.removesuffix(END) and answer.finish_reason == "stop" and not answer.exited
            pieces = [tiny_processor.tokenizer(part)["input_ids"] for part, _ in scripts[prompt]]
            assert answer.token_ids.tolist() == sum(pieces, [])
            expected = first_answer_confidence(answer.token_ids, answer.logprobs, tiny_processor.tokenizer)
            assert answer.confidence == pytest.approx(expected, abs=1e-6)
        sure, lost, wrong = found["sure"], found["lost"], found["wrong"]
        assert (sure.first_answer, sure.reasoning, sure.final_answer, sure.answer) == ("A", "It is red.", "B", "B")
        assert sure.confidence == pytest.approx(0.99, abs=1e-4)
        assert found["unsure"].confidence == pytest.approx(0.6, abs=1e-4)
        assert (lost.first_answer, lost.confidence, lost.answer) == ("Let's analyze the problem step by step.", -1, "7")
        assert (wrong.first_answer, wrong.confidence, wrong.reasoning, wrong.answer) == ("", -1, "", "")


def test_first_ends_every_branch_behind_its_first_answer(answers):
    whole, found = answers(mode="second"), answers(mode="first")
    for prompt in ("sure", "unsure", "lost"):
        is_prefix_up_to_the_box(found[prompt], whole[prompt])
        assert found[prompt].answer == whole[prompt].first_answer
    assert found["wrong"].finish_reason == "stop"


def test_auto_ends_the_confident_ones_only(answers):
    whole = answers(mode="second")
    for threshold, exits in ((0.97, {"sure"}), (0.5, {"sure", "unsure"}), (0.995, set())):
        for prompt, answer in answers(mode="auto", threshold=threshold).items():
            if prompt in exits:
                is_prefix_up_to_the_box(answer, whole[prompt])
            else:
                np.testing.assert_array_equal(answer.token_ids, whole[prompt].token_ids)
                assert not answer.exited and answer.answer == whole[prompt].answer


def is_prefix_up_to_the_box(answer, whole):
    count = len(answer.token_ids)
    assert answer.exited and answer.finish_reason == "exit" and answer.final_answer == ""
    assert count == answer.first_tokens == whole.first_tokens < len(whole.token_ids)
    np.testing.assert_array_equal(answer.token_ids, whole.token_ids[:count])
    np.testing.assert_array_equal(answer.logprobs, whole.logprobs[:count])
    assert answer.confidence == whole.confidence and "}" in answer.text[-2:]


def test_a_response_may_begin_in_the_prompt(scripted, chats):
    """As upstream's `mvp_` tasks ask: the first answer is what follows, its letter alone is measured."""
    begun = "\\boxed{Answer:"
    said = [(" A", 0.9), ("}<think>It is red.</think>\\boxed{B}" + END, 0.999)]
    sampler = scripted({("sure", begun): said}, mode="auto", threshold=0.95)
    messages = [*chats["sure"], {"role": "assistant", "content": begun}]
    (answer,) = sampler([messages])
    assert answer.text == begun + " A}<think>It is red.</think>\\boxed{B}"
    assert answer.confidence == pytest.approx(0.9, abs=1e-4)
    assert (answer.first_answer, answer.answer) == ("Answer: A", "B")
    sampler.config = dataclasses.replace(sampler.config, threshold=0.85)
    (early,) = sampler([messages])
    assert early.exited and early.answer == "Answer: A"
    assert early.token_ids.tolist() == answer.token_ids[: len(early.token_ids)].tolist()


def test_forced_format_writes_nothing_else(tiny_model, tiny_processor, chats):
    """A model that knows nothing: random letters, but in their places, and complete when there is no more room."""
    config = SamplingConfig(mode="second", max_new_tokens=64, temperature=1.0, prompts=1, forced_format=True, seed=1)
    sampler = Sampler(tiny_model, tiny_processor, config)
    (group,) = sampler.rollout([chats["sure"]], branches=16)
    free = dataclasses.replace(config, forced_format=False)
    (unforced,) = Sampler(tiny_model, tiny_processor, free).rollout([chats["sure"]], branches=16)
    automaton = sampler.automaton
    state = lambda answer: automaton.valid[replay(automaton, answer.token_ids)[-1][1]]  # noqa: E731
    assert all(map(state, group)) and not any(map(state, unforced))
    for answer in group:
        assert is_well_formed(answer.text)
        assert (answer.sampling_logprobs >= answer.logprobs - 1e-5).all()


def test_behind_a_forced_response_stands_nothing(scripted, chats):
    """The padding token ends the protocol's response although this checkpoint does not stop at it."""
    said = "\\boxed{A}<think>It is.</think>\\boxed{B}<|endoftext|> and more"
    sampler = scripted({"sure": [(said, 0.999)]}, mode="second", forced_format=True)
    sampler.processor = copy.copy(sampler.processor)
    sampler.processor.eos_token_ids = (sampler.processor.tokenizer.eos_token_id,)
    (answer,) = sampler([chats["sure"]])
    assert (answer.text, answer.finish_reason) == (said.partition("<|endoftext|>")[0], "stop")


def test_a_repetition_penalty_counts_in_the_confidence(answers):
    """As in upstream's evaluation: `C` stands nowhere in the prompt, what it is compared with does."""
    plain = answers(mode="second")["sure"]
    penalised = answers(mode="second", repetition_penalty=1.2)["sure"]
    np.testing.assert_array_equal(penalised.token_ids, plain.token_ids)
    np.testing.assert_array_equal(penalised.logprobs, plain.logprobs)
    assert penalised.confidence != plain.confidence


def test_no_room_is_a_reason(answers):
    for answer in answers(mode="second", max_new_tokens=3).values():
        assert len(answer.token_ids) == 3 and answer.finish_reason == "length"


def test_sampled_branches_follow_the_probabilities(scripted, chats):
    sampler = scripted({"sure": [("A", 0.75), (END, 0.999)]}, temperature=1.0, max_new_tokens=4, prompts=1)
    (group,) = sampler.rollout([chats["sure"]], branches=256)
    share = np.mean([answer.text[:1] == "A" for answer in group])
    assert abs(share - 0.75) < 0.1  # 3.7 deviations
    sampler.config = dataclasses.replace(sampler.config, temperature=0.5, seed=5)
    (group,) = sampler.rollout([chats["sure"]], branches=256)
    assert np.mean([answer.text[:1] == "A" for answer in group]) > 0.95
    written = next(answer for answer in group if answer.text[:1] == "A")
    assert written.logprobs[0] == pytest.approx(np.log(0.75), abs=1e-4)
    assert written.sampling_logprobs[0] > -0.01
