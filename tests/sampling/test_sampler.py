"""From messages to answers: modes, the gate, and what a branch depends on."""

import collections
import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from videoauto_jax.errors import ConfigError, ModelError, VideoAutoError
from videoauto_jax.protocol import first_answer_confidence, is_well_formed
from videoauto_jax.protocol.confidence import replay
from videoauto_jax.sampling import cache, engine
from videoauto_jax.sampling.config import checkpoint_defaults
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig

SURE, UNSURE, LOST, WRONG = (text + " 1" * count for text, count in zip("abcd", (0, 50, 100, 160)))
FALLBACK = "Let's analyze the problem step by step."
END = "<|im_end|>"
SCRIPTS = {
    SURE: [("\\boxed{", 0.999), ("A", 0.99), ("}<think>It is red.</think>\\boxed{B}" + END, 0.999)],
    UNSURE: [("\\boxed{", 0.999), ("C", 0.6), ("}<think>No, blue.</think>\\boxed{D}" + END, 0.999)],
    LOST: [(f"\\boxed{{{FALLBACK}}}<think>So.</think>\\boxed{{7}}" + END, 0.999)],
    WRONG: [("no box here" + END, 0.999)],
}
SETTINGS = {"max_new_tokens": 96, "prompts": 4, "temperature": 0.0}


def chat(prompt):
    return [{"role": "user", "content": prompt}]


def answers(sampler, **changes):
    """An answer for every prompt of the script, with some settings changed."""
    sampler.config = dataclasses.replace(sampler.config, **changes)
    return dict(zip(SCRIPTS, sampler([chat(prompt) for prompt in SCRIPTS])))


@pytest.fixture
def sampler(scripted):
    return scripted(SCRIPTS, **SETTINGS)


def test_second_writes_everything_and_measures_confidence(sampler, tiny_processor):
    for mode in ("second", "record"):
        found = answers(sampler, mode=mode)
        for prompt, answer in found.items():
            text = "".join(part for part, _ in SCRIPTS[prompt])
            assert answer.text == text.removesuffix(END) and answer.finish_reason == "stop" and not answer.exited
            pieces = [tiny_processor.tokenizer(part)["input_ids"] for part, _ in SCRIPTS[prompt]]
            assert answer.token_ids.tolist() == sum(pieces, [])
            expected = first_answer_confidence(answer.token_ids, answer.logprobs, tiny_processor.tokenizer)
            assert answer.confidence == pytest.approx(expected, abs=1e-6)
        sure, lost, wrong = found[SURE], found[LOST], found[WRONG]
        assert (sure.first_answer, sure.reasoning, sure.final_answer, sure.answer) == ("A", "It is red.", "B", "B")
        assert sure.confidence == pytest.approx(0.99, abs=1e-4)
        assert found[UNSURE].confidence == pytest.approx(0.6, abs=1e-4)
        assert (lost.first_answer, lost.confidence, lost.answer) == (FALLBACK, -1, "7")
        assert (wrong.first_answer, wrong.confidence, wrong.answer) == ("", -1, "")


def test_first_ends_every_branch_behind_its_first_answer(sampler):
    whole, found = answers(sampler, mode="second"), answers(sampler, mode="first")
    for prompt in (SURE, UNSURE, LOST):
        is_prefix_up_to_the_box(found[prompt], whole[prompt])
        assert found[prompt].answer == whole[prompt].first_answer
    assert found[WRONG].finish_reason == "stop"


def test_auto_ends_the_confident_ones_only(sampler):
    whole = answers(sampler, mode="second")
    for threshold, exits in ((0.97, {SURE}), (0.5, {SURE, UNSURE}), (0.995, set())):
        for prompt, answer in answers(sampler, mode="auto", threshold=threshold).items():
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


def test_a_response_may_begin_in_the_prompt(scripted):
    """As upstream's `mvp_` tasks ask: the first answer is what follows, its letter alone is measured."""
    begun = "\\boxed{Answer:"
    said = [(" A", 0.9), ("}<think>It is red.</think>\\boxed{B}" + END, 0.999)]
    sampler = scripted({(SURE, begun): said}, **SETTINGS, mode="auto", threshold=0.95)
    messages = [*chat(SURE), {"role": "assistant", "content": begun}]
    (answer,) = sampler([messages])
    assert answer.text == begun + " A}<think>It is red.</think>\\boxed{B}"
    assert answer.confidence == pytest.approx(0.9, abs=1e-4)
    assert (answer.first_answer, answer.answer) == ("Answer: A", "B")
    sampler.config = dataclasses.replace(sampler.config, threshold=0.85)
    (early,) = sampler([messages])
    assert early.exited and early.answer == "Answer: A" and is_prefix(early.token_ids, answer.token_ids)


def is_prefix(short, long):
    return len(short) < len(long) and (short == long[: len(short)]).all()


def test_forced_format_writes_nothing_else(tiny_model, tiny_processor):
    """A model that knows nothing: random letters, but in their places, and complete when there is no more room."""
    config = SamplingConfig(mode="second", max_new_tokens=64, temperature=1.0, prompts=1, forced_format=True, seed=1)
    sampler = Sampler(tiny_model, tiny_processor, config)
    (group,) = sampler.rollout([chat("Hi")], branches=16)
    free = dataclasses.replace(config, forced_format=False)
    (unforced,) = Sampler(tiny_model, tiny_processor, free).rollout([chat("Hi")], branches=16)
    automaton = sampler.automaton
    state = lambda answer: automaton.valid[replay(automaton, answer.token_ids)[-1][1]]  # noqa: E731
    assert all(map(state, group)) and not any(map(state, unforced))
    for answer in group:
        assert is_well_formed(answer.text)
        assert (answer.sampling_logprobs >= answer.logprobs - 1e-5).all()


def test_a_repetition_penalty_counts_in_the_confidence(sampler):
    """As in upstream's evaluation: `C` stands nowhere in the prompt, what it is compared with does."""
    plain = answers(sampler, mode="second")[SURE]
    penalised = answers(sampler, mode="second", repetition_penalty=1.2)[SURE]
    np.testing.assert_array_equal(penalised.token_ids, plain.token_ids)
    np.testing.assert_array_equal(penalised.logprobs, plain.logprobs)
    assert penalised.confidence != plain.confidence


def test_defaults_come_from_the_checkpoint(tmp_path):
    assert checkpoint_defaults(tmp_path) == {}
    drawn = {"temperature": 0.7, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.05}
    stated = {"do_sample": True, **drawn, "eos_token_id": [1]}
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(stated))
    assert checkpoint_defaults(tmp_path) == drawn
    for greedy in ({**stated, "do_sample": False}, drawn):  # transformers is greedy unless told otherwise
        path.write_text(json.dumps(greedy))
        assert SamplingConfig(**checkpoint_defaults(tmp_path)).temperature == 0
    path.write_text(json.dumps({"repetition_penalty": "1.05"}))
    with pytest.raises(ModelError, match="repetition_penalty='1.05'.*generation_config.json"):
        checkpoint_defaults(tmp_path)


def test_no_room_is_a_reason(sampler):
    for answer in answers(sampler, mode="second", max_new_tokens=3).values():
        assert len(answer.token_ids) == 3 and answer.finish_reason == "length"


def test_sampled_branches_follow_the_probabilities(scripted):
    sampler = scripted({SURE: [("A", 0.75), (END, 0.999)]}, temperature=1.0, max_new_tokens=4, prompts=1)
    (group,) = sampler.rollout([chat(SURE)], branches=256)
    share = np.mean([answer.text[:1] == "A" for answer in group])
    assert abs(share - 0.75) < 0.1  # 3.7 deviations
    sampler.config = dataclasses.replace(sampler.config, temperature=0.5, seed=5)
    (group,) = sampler.rollout([chat(SURE)], branches=256)
    assert np.mean([answer.text[:1] == "A" for answer in group]) > 0.95
    written = next(answer for answer in group if answer.text[:1] == "A")
    assert written.logprobs[0] == pytest.approx(np.log(0.75), abs=1e-4)
    assert written.sampling_logprobs[0] > -0.01


PROGRAMS = (cache.prefill, cache.copy_prompts, engine.empty, engine.widen, engine._admit_whole,
            engine._admit_some, engine.decode, engine.pick)  # fmt: skip


def test_nothing_compiles_again(sampler, scripted):
    for _ in range(2):  # from nothing, and from what the slots still hold
        answers(sampler, mode="second")
        sampler([chat(WRONG)])  # one by itself is another shape
    before = [program._cache_size() for program in PROGRAMS]
    for changes in ({"mode": "auto"}, {"threshold": 0.3}, {"temperature": 0.7}, {"seed": 9}, {"mode": "first"},
                    {"top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1, "forced_format": True},
                    {"stop": ("x",), "max_new_tokens": 90}):  # fmt: skip
        answers(sampler, **changes)
    sampler.model = jax.tree.map(lambda table: table * 1.5, sampler.model)
    answers(sampler)
    sampler([chat(WRONG)])  # fewer prompts than fit
    answers(scripted(SCRIPTS, **SETTINGS))
    assert before == [program._cache_size() for program in PROGRAMS]


@pytest.fixture(scope="module")
def prompts():
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    video = {"type": "video", "video": list(noise), "sample_fps": 2.0, "min_pixels": 4096, "max_pixels": 4096}
    return [
        chat("What happens?"),
        [{"role": "user", "content": [video, {"type": "text", "text": "What happens in the video?"}]}],
        chat("And why does it happen?"),
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
        sampler = Sampler(writer.model, writer.processor, dataclasses.replace(writer.config, **changes))
        for group, same in zip(sampler.rollout(prompts, branches=3), groups):
            for mine, expected in zip(group, same):
                np.testing.assert_array_equal(mine.token_ids, expected.token_ids, err_msg=str(changes))
    reseeded = Sampler(writer.model, writer.processor, dataclasses.replace(writer.config, seed=4))
    again = {tuple(answer.token_ids) for group in reseeded.rollout(prompts, branches=3) for answer in group}
    assert not written & again


def test_temperature_0_is_greedy_for_all_branches(writer, prompts):
    sampler = Sampler(writer.model, writer.processor, dataclasses.replace(writer.config, temperature=0.0))
    for group in sampler.rollout(prompts, branches=3):
        assert len({tuple(answer.token_ids) for answer in group}) == 1
        np.testing.assert_allclose(group[0].logprobs, group[0].sampling_logprobs)


def test_no_prompts_no_answers(writer):
    assert writer([]) == [] and writer.rollout([], branches=4) == []


def test_more_prompts_than_fit_come_back_in_order(sampler):
    order = [UNSURE, SURE, WRONG, SURE, LOST, UNSURE]
    found = sampler([chat(prompt) for prompt in order])
    assert [answer.first_answer for answer in found] == ["C", "A", "", "A", FALLBACK, "C"]


def test_a_branch_that_runs_is_left_alone_when_most_slots_are_filled_anew(sampler):
    order = [WRONG, WRONG, WRONG, SURE, UNSURE, UNSURE, UNSURE]
    sampler.config = dataclasses.replace(sampler.config, mode="second", reuse_prefixes=False)  # three end at once
    found = sampler([chat(prompt) for prompt in order])
    assert [answer.first_answer for answer in found] == ["", "", "", "A", "C", "C", "C"]


def test_text_is_told_as_it_is_written(sampler, tiny_processor):
    prompts = [tiny_processor.encode(chat(prompt)) for prompt in SCRIPTS]
    for changes in ({"mode": "auto"}, {"mode": "second", "stop": ("blue", "x\\b", "think>\\")}):
        sampler.config = dataclasses.replace(sampler.config, **changes)
        told = collections.defaultdict(list)
        groups = sampler.generate(prompts, 2, on_text=lambda *where, told=told: told[where[:2]].append(where[2]))
        for n, group in enumerate(groups):
            for g, answer in enumerate(group):
                assert "".join(told[n, g]) == answer.text and len(told[n, g]) > (len(answer.token_ids) > 12)
    assert groups[1][0].text.endswith("<think>No, ") and groups[1][0].finish_reason == "stop"
    assert groups[0][0].text.endswith("</") and groups[3][0].text == "no box here"


def test_a_stop_text_ends_a_branch_as_if_nothing_had_been_written_behind_it(sampler):
    whole = answers(sampler, mode="second")
    for stop, text in (("think", "\\boxed{A}<"), ("}<", "\\boxed{A"), ("{", "\\boxed"), ("B}", whole[SURE].text[:-2])):
        found = answers(sampler, mode="second", stop=(stop, "never written"))[SURE]
        count = len(found.token_ids)
        assert found.text == text and found.finish_reason == "stop"
        np.testing.assert_array_equal(found.token_ids, whole[SURE].token_ids[:count])
        np.testing.assert_array_equal(found.logprobs, whole[SURE].logprobs[:count])
        before, after = (sampler.processor.decode(found.token_ids[:n]) for n in (count - 1, count))
        assert stop not in before and stop in after
        assert found.confidence == (whole[SURE].confidence if "}" in text + stop and text != "\\boxed" else -1)


def test_a_stop_text_on_the_last_token_there_is(sampler):
    """Nothing has been written behind it, but neither the end of the room nor the gate is why the text ends there."""
    whole = answers(sampler, mode="second")[SURE]
    count = len(whole.token_ids) - 2
    last = whole.text[len(sampler.processor.decode(whole.token_ids[: count - 1])) :][:1]
    assert last not in sampler.processor.decode(whole.token_ids[: count - 1])
    found = answers(sampler, mode="second", max_new_tokens=count, stop=(last,))[SURE]
    assert len(found.token_ids) == count and found.finish_reason == "stop" and last not in found.text
    found = answers(sampler, mode="auto", max_new_tokens=96, stop=("}",))[SURE]
    assert (found.text, found.finish_reason, found.exited, found.answer) == ("\\boxed{A", "stop", False, "")


def test_a_special_token_may_be_a_stop(scripted):
    sampler = scripted({SURE: [("It is<|im_start|> red" + END, 0.999)]}, **SETTINGS, mode="second")
    (plain,) = sampler([chat(SURE)])
    sampler.config = dataclasses.replace(sampler.config, stop=("<|im_start|>",))
    (stopped,) = sampler([chat(SURE)])
    assert (plain.text, stopped.text) == ("It is red", "It is") and stopped.finish_reason == "stop"
    assert is_prefix(stopped.token_ids, plain.token_ids)


def test_what_cannot_be_a_prompt_is_refused_and_the_others_finish(sampler, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    video = {"type": "video", "video": str(tmp_path / "broken.mp4")}
    broken = [{"role": "user", "content": [video, {"type": "text", "text": "What?"}]}]
    sampler.config = dataclasses.replace(sampler.config, mode="second")
    sure, refused, unsure = sampler([chat(SURE), broken, chat(UNSURE)])
    assert (sure.answer, unsure.answer) == ("B", "D")
    assert refused.finish_reason == "refused" and "broken.mp4" in refused.error


def test_prompts_that_are_collated_already_are_not_refused(sampler, tiny_processor):
    """They have a row each, and fit it: leaving one out would give its row to the next."""
    prompts = [tiny_processor.encode(chat(prompt)) for prompt in (SURE, WRONG, UNSURE)]
    sampler.config = dataclasses.replace(sampler.config, mode="second", prompt_lengths=(len(prompts[2].token_ids),))
    groups = sampler.generate(prompts, 1, inputs=tiny_processor.collate(prompts))
    assert [answer.text[:8] for (answer,) in groups] == ["\\boxed{A", "no box h", "\\boxed{C"]


def test_the_number_of_questions_about_one_video_compiles_nothing(tiny_model, tiny_processor):
    long = "A long question about what happens in the video, and why. " * 3
    config = SamplingConfig(mode="second", max_new_tokens=4, prompts=8)
    sampler = Sampler(tiny_model, tiny_processor, config)
    ask = lambda names: sampler([chat(f"{long}{name}?") for name in names])  # noqa: E731
    ask("a"), ask("bcdef")
    programs = (cache.prefill, cache.copy_prompts, engine._admit_some, engine._admit_whole)
    before = [program._cache_size() for program in programs]
    reused = sampler.usage.reused
    found = ask("ghijkl"), ask("mnopqrs")
    assert before == [program._cache_size() for program in programs] and sampler.usage.reused > reused
    alone = Sampler(tiny_model, tiny_processor, config)([chat(f"{long}k?")])[0]
    np.testing.assert_array_equal(found[0][4].token_ids, alone.token_ids)


def test_the_stream_takes_prompts_as_slots_become_free(sampler, tiny_processor):
    """Two slots, and a long answer that keeps one of them while the other serves everybody else."""
    order = [UNSURE, WRONG, WRONG, SURE, WRONG, LOST, WRONG]
    taken = []

    def prompts():
        for number, prompt in enumerate(order):
            taken.append(number)
            yield tiny_processor.encode(chat(prompt))

    sampler.config = dataclasses.replace(sampler.config, mode="second", prompts=2)
    stream, found, ahead = sampler.stream(prompts()), {}, []
    for position, (answer,) in stream:
        found[position] = answer
        ahead.append(len(taken) - len(found))
    assert sampler.usage.useful == sum(len(answer.token_ids) - 1 for answer in found.values())
    alone = {prompt: answer.text for prompt, answer in answers(sampler, prompts=4).items()}
    assert [found[n].text for n in range(len(order))] == [alone[prompt] for prompt in order]
    assert list(found) != sorted(found) and max(ahead) <= 4


def test_a_prompt_that_is_too_long_is_refused_and_the_others_finish(sampler, tiny_processor):
    lengths = {prompt: len(tiny_processor.encode(chat(prompt)).token_ids) for prompt in SCRIPTS}
    edge = lengths[UNSURE]
    assert max(lengths.values()) == lengths[WRONG] > edge > lengths[SURE]
    whole = answers(sampler)
    for prompt, answer in answers(sampler, prompt_lengths=(edge,)).items():
        if lengths[prompt] > edge:
            assert answer.finish_reason == "refused" and answer.text == "" and answer.confidence == -1
            assert f"{lengths[prompt]} tokens, {edge} are allowed" in answer.error
        else:
            assert answer.text == whole[prompt].text and answer.error == ""


def test_another_question_about_a_video_computes_the_question_only(tiny_model, tiny_processor):
    noise = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
    videos = [
        {"type": "video", "video": list(frames), "sample_fps": 2.0, "min_pixels": 16384, "max_pixels": 16384}
        for frames in (noise, noise[::-1])
    ]
    asked = [(0, "What?"), (0, "Why does it happen?"), (1, "What?"), (0, "Where?"), (1, "Who?")]
    prompts = [
        tiny_processor.encode([{"role": "user", "content": [videos[v], {"type": "text", "text": text}]}])
        for v, text in asked
    ]
    written = {}
    for reuse in (False, True):
        config = SamplingConfig(mode="second", max_new_tokens=8, prompts=2, prefill_tokens=64, reuse_prefixes=reuse)
        sampler = Sampler(tiny_model, tiny_processor, config)
        written[reuse] = [answer for _, (answer,) in sorted(sampler.stream(prompts), key=lambda item: item[0])]
        total = sum(len(prompt.token_ids) for prompt in prompts)
        assert sampler.usage.prefilled + sampler.usage.reused == total
        assert (sampler.usage.reused > 0.5 * total) == reuse
    for mine, expected in zip(written[True], written[False]):
        np.testing.assert_array_equal(mine.token_ids, expected.token_ids)
        np.testing.assert_allclose(mine.logprobs, expected.logprobs, atol=1e-4)
    before = sampler.usage.prefilled
    sampler.generate(prompts[4:], 1)  # from an earlier call
    assert sampler.usage.prefilled - before < 0.2 * len(prompts[4].token_ids)
    sampler.model = jax.tree.map(lambda leaf: leaf * 1.1, tiny_model)
    before = sampler.usage.prefilled
    sampler.generate(prompts[4:], 1)  # of other weights
    assert sampler.usage.prefilled - before == len(prompts[4].token_ids)


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


@pytest.mark.parametrize(
    "setting",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"prompts": 0},
        {"mode": "third"},
        {"top_p": 0.0},
        {"cache_dtype": "int4"},
        {"stop": ("",)},
        {"stop": "</think>"},  # not eight stops of one character
        {"max_new_tokens": 64.0},
        {"temperature": "0.7"},
        {"top_p": None},
        {"prompts": True},
        {"seed": 0.5},
        {"threshold": -1.0},
        {"threshold": float("nan")},
        {"prompt_lengths": ()},
        {"prompt_lengths": (64, 0)},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError, match=re.escape(repr(value))) as raised:
        SamplingConfig(**setting)
    assert isinstance(raised.value, VideoAutoError) and raised.value.fix and name in str(raised.value)


@pytest.mark.parametrize("branches", [0, -1, 2.0])
def test_branches_are_counted_in_whole_numbers(sampler, branches):
    with pytest.raises(ConfigError, match=f"branches={branches}"):
        sampler.rollout([chat(SURE)], branches=branches)
