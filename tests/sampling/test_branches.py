"""What a branch depends on, with a real model."""

import dataclasses

import jax
import numpy as np
import pytest

from videoauto_jax.sampling.sampler import Sampler, SamplingConfig


@pytest.fixture(scope="module")
def prompts():
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    video = {"type": "video", "video": list(noise), "sample_fps": 2.0, "min_pixels": 4096, "max_pixels": 4096}
    return [
        [{"role": "user", "content": "What happens?"}],
        [{"role": "user", "content": [video, {"type": "text", "text": "What happens in the video?"}]}],
        [{"role": "user", "content": "And why does it happen?"}],
    ]


@pytest.fixture(scope="module")
def writer(tiny_model, tiny_processor):
    config = SamplingConfig(mode="second", max_new_tokens=12, temperature=1.0, prompts=3, seed=3)
    return Sampler(tiny_model, tiny_processor, config)


def test_a_branch_depends_on_seed_prompt_and_number_only(writer, prompts):
    groups = writer.rollout(prompts, branches=3)
    written = {tuple(answer.token_ids) for group in groups for answer in group}
    assert len(written) == 9  # all different from one another
    others = writer.rollout([prompts[2], prompts[1]], branches=2)  # other rows, other neighbours, fewer branches
    for group, same in ((others[0], groups[2]), (others[1], groups[1])):
        for mine, expected in zip(group, same):
            np.testing.assert_array_equal(mine.token_ids, expected.token_ids)
            np.testing.assert_allclose(mine.logprobs, expected.logprobs, atol=1e-4)
    for changes in ({"prompts": 1}, {"prompts": 8, "prefill_tokens": 64, "prompt_lengths": (96, 256)}):
        sampler = replaced(writer, **changes)
        for group, same in zip(sampler.rollout(prompts, branches=3), groups):
            for mine, expected in zip(group, same):
                np.testing.assert_array_equal(mine.token_ids, expected.token_ids, err_msg=str(changes))
    reseeded = replaced(writer, seed=4)
    again = {tuple(answer.token_ids) for group in reseeded.rollout(prompts, branches=3) for answer in group}
    assert not written & again


def test_log_probs_are_those_of_whole_rows_under_everything_that_narrows_the_choice(writer, prompts, teacher_forced):
    """Both kinds of log-probabilities, against the forward pass of whole rows and transformers' processors."""
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    sampler = replaced(writer, temperature=0.7, repetition_penalty=1.3, top_k=40, top_p=0.9, min_p=0.02)
    processors = theirs.RepetitionPenaltyLogitsProcessor(1.3), theirs.TemperatureLogitsWarper(0.7)
    processors += theirs.TopKLogitsWarper(40), theirs.TopPLogitsWarper(0.9), theirs.MinPLogitsWarper(0.02)
    for messages, group in zip(prompts[:2], sampler.rollout(prompts[:2], branches=2)):
        prompt = writer.processor.encode(messages)
        for answer in group:
            tokens, (before,) = answer.token_ids, torch.tensor(prompt.token_ids)[None].long()
            logits = teacher_forced(writer.model, prompt, tokens)
            raw = jax.nn.log_softmax(logits)[np.arange(len(tokens)), tokens]
            np.testing.assert_allclose(answer.logprobs, raw, atol=1e-4)
            expected = []
            for n, token in enumerate(tokens):
                context, scores = torch.cat([before, torch.tensor(tokens[:n]).long()])[None], torch.tensor(logits[n])
                for processor in processors:
                    scores = processor(context, scores.reshape(1, -1))
                expected.append(torch.log_softmax(scores, -1)[0, token].item())
            np.testing.assert_allclose(answer.sampling_logprobs, expected, atol=1e-4)
            assert (answer.sampling_logprobs > answer.logprobs).any()


def test_a_prompt_at_the_edge_of_a_bucket(writer, prompts, teacher_forced):
    """One that fills it, one that is a token too long for it, and one whose last token goes through by itself."""
    prompt, sizes = writer.processor.encode(prompts[1]), {"max_new_tokens": 4, "prompts": 1}
    count, written = len(prompt.token_ids), []
    for rungs, most in (((count,), count), ((count - 1, count + 5), count + 5), ((count,), count - 1)):
        sampler = replaced(writer, prompt_lengths=rungs, prefill_tokens=most, **sizes)
        ((answer,),) = sampler.generate([prompt], 1)
        logits = teacher_forced(writer.model, prompt, answer.token_ids)
        expected = jax.nn.log_softmax(logits)[np.arange(4), answer.token_ids]
        np.testing.assert_allclose(answer.logprobs, expected, atol=1e-4, err_msg=str(rungs))
        written.append(tuple(answer.token_ids))
    assert len(set(written)) == 1
    ((refused,),) = replaced(writer, prompt_lengths=(count - 1,), **sizes).generate([prompt], 1)
    assert refused.finish_reason == "refused"


def test_temperature_0_is_greedy_for_all_branches(writer, prompts):
    sampler = replaced(writer, temperature=0.0)
    for group in sampler.rollout(prompts, branches=3):
        assert len({tuple(answer.token_ids) for answer in group}) == 1
        np.testing.assert_allclose(group[0].logprobs, group[0].sampling_logprobs)


@pytest.mark.parametrize(("dtype", "off"), [("int8", 0.05), ("float8_e4m3fn", 0.2)])
def test_caches_in_8_bits_cost_little(dtype, off, tiny_model, tiny_processor, prompts):
    """In pieces, so that keys of 8 bits are read in prefill too. What is off is measured on the same tokens."""
    config = SamplingConfig(mode="second", max_new_tokens=12, prompts=3, prefill_tokens=64)
    plain = Sampler(tiny_model, tiny_processor, config)(prompts)
    small = Sampler(tiny_model, tiny_processor, dataclasses.replace(config, cache_dtype=dtype))(prompts)
    errors = []
    for mine, expected in zip(small, plain):
        differ = np.flatnonzero(mine.token_ids != expected.token_ids)
        same = differ[0] if len(differ) else len(mine.token_ids)
        errors += np.abs(mine.logprobs - expected.logprobs)[:same].tolist()
    assert len(errors) >= 12 and 0 < np.mean(errors) < off


def test_the_gate_writes_what_the_full_run_has_up_to_there(writer, prompts):
    """A model that knows nothing, in forced format: some first answers are sure enough, others think on beside them."""
    write = lambda **changes: sum(replaced(writer, forced_format=True, **changes).rollout(prompts, branches=6), [])  # noqa: E731
    whole = write(max_new_tokens=48)
    threshold = float(np.median([answer.confidence for answer in whole]))
    exits = [answer.confidence >= threshold for answer in whole]
    assert 4 < sum(exits) < 14
    for mode, ends in (("auto", exits), ("first", [True] * 18)):
        for found, full, early in zip(
            write(max_new_tokens=48, mode=mode, threshold=threshold), whole, ends, strict=True
        ):
            count = full.first_tokens if early else len(full.token_ids)
            assert found.exited == early and len(found.token_ids) == count
            np.testing.assert_array_equal(found.token_ids, full.token_ids[:count])
            np.testing.assert_allclose(found.logprobs, full.logprobs[:count], atol=1e-4)
            assert found.confidence == pytest.approx(full.confidence, abs=1e-5)
            assert found.answer == (full.first_answer if early else full.answer)


def replaced(sampler, **changes):
    """The same model with other settings."""
    return Sampler(sampler.model, sampler.processor, dataclasses.replace(sampler.config, **changes))
