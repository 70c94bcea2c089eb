"""Prompts through slots: which wait, which are refused, what they share, and that nothing compiles again."""

import dataclasses

import jax
import numpy as np
import pytest

from videoauto_jax.sampling import cache, engine, slots
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig
from videoauto_jax.sampling.schedule import quorum
from videoauto_jax.sampling.table import Table

PROGRAMS = (cache.prefill, cache.copy_prompts, slots.empty, slots.widen, engine._admit_whole,
            engine._admit_some, engine.decode, slots.pick)  # fmt: skip


def test_nothing_compiles_again(sampler, answers, chats, scripts, scripted):
    for _ in range(2):  # from nothing, and from what the slots still hold
        answers(mode="second")
        sampler([chats["wrong"]])  # one by itself is another shape
    before = [program._cache_size() for program in PROGRAMS]
    for changes in ({"mode": "auto"}, {"threshold": 0.3}, {"temperature": 0.7}, {"seed": 9}, {"mode": "first"},
                    {"top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1, "forced_format": True},
                    {"stop": ("x", "<|im_start|>"), "max_new_tokens": 90}):  # fmt: skip
        answers(**changes)
    sampler.model = jax.tree.map(lambda table: table * 1.5, sampler.model)
    answers()
    sampler([chats["wrong"]])  # fewer prompts than fit
    scripted(scripts)(list(chats.values()))
    assert before == [program._cache_size() for program in PROGRAMS]


@pytest.mark.parametrize(
    "slots, shards, tokens, count",
    [
        *((16, 1, 128, 1), (32, 1, 128, 4), (32, 1, 129, 2), (64, 1, 10, 4), (128, 1, 10, 16), (256, 1, 4096, 16)),
        *((2, 1, 1, 1), (1, 1, 1, 1), (64, 8, 4096, 8), (16, 8, 4096, 4), (8, 8, 10, 2)),
    ],
)
def test_prompts_wait_for_those_that_cost_nothing_beside_them(slots, shards, tokens, count):
    assert quorum(Table(SamplingConfig(), slots, 1, 0, shards), tokens) == count


def test_no_prompts_no_answers(sampler):
    assert sampler([]) == [] and sampler.rollout([], branches=4) == []


def test_more_prompts_than_fit_come_back_in_order(sampler, chats):
    order = ["unsure", "sure", "wrong", "sure", "lost", "unsure"]
    found = sampler([chats[name] for name in order])
    assert [answer.first_answer for answer in found] == [
        "C",
        "A",
        "",
        "A",
        "Let's analyze the problem step by step.",
        "C",
    ]


def test_a_branch_that_runs_is_left_alone_when_most_slots_are_filled_anew(sampler, chats):
    order = ["wrong", "wrong", "wrong", "sure", "unsure", "unsure", "unsure"]
    sampler.config = dataclasses.replace(sampler.config, mode="second", reuse_prefixes=False)  # three end at once
    found = sampler([chats[name] for name in order])
    assert [answer.first_answer for answer in found] == ["", "", "", "A", "C", "C", "C"]


def test_the_stream_takes_prompts_as_slots_become_free(sampler, answers, chats, tiny_processor):
    """Two slots, and a long answer that keeps one of them while the other serves everybody else."""
    order = ["unsure", "wrong", "wrong", "sure", "wrong", "lost", "wrong"]
    taken = []

    def prompts():
        for number, name in enumerate(order):
            taken.append(number)
            yield tiny_processor.encode(chats[name])

    sampler.config = dataclasses.replace(sampler.config, mode="second", prompts=2)
    stream, found, ahead = sampler.stream(prompts()), {}, []
    for position, (answer,) in stream:
        found[position] = answer
        ahead.append(len(taken) - len(found))
    assert sampler.usage.useful == sum(len(answer.token_ids) - 1 for answer in found.values())
    alone = {prompt: answer.text for prompt, answer in answers(prompts=4).items()}
    assert [found[n].text for n in range(len(order))] == [alone[prompt] for prompt in order]
    assert list(found) != sorted(found) and max(ahead) <= 4


@pytest.mark.filterwarnings("error::UserWarning")  # the slots are widened: nothing may be donated that cannot be used
def test_what_cannot_be_a_prompt_is_refused_and_the_others_finish(sampler, chats, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    video = {"type": "video", "video": str(tmp_path / "broken.mp4")}
    broken = [{"role": "user", "content": [video, {"type": "text", "text": "What?"}]}]
    sampler.config = dataclasses.replace(sampler.config, mode="second")
    sure, refused, unsure = sampler([chats["sure"], broken, chats["unsure"]])
    assert (sure.answer, unsure.answer) == ("B", "D")
    assert refused.finish_reason == "refused" and "broken.mp4" in refused.error


def test_prompts_that_are_collated_already_are_not_refused(sampler, chats, tiny_processor):
    """They have a row each, and fit it: leaving one out would give its row to the next."""
    prompts = [tiny_processor.encode(chats[name]) for name in ("sure", "wrong", "unsure")]
    sampler.config = dataclasses.replace(sampler.config, mode="second", prompt_lengths=(len(prompts[2].token_ids),))
    groups = sampler.generate(prompts, 1, inputs=tiny_processor.collate(prompts))
    assert [answer.text[:8] for (answer,) in groups] == ["\\boxed{A", "no box h", "\\boxed{C"]


def test_a_prompt_that_is_too_long_is_refused_and_the_others_finish(answers, chats, tiny_processor):
    lengths = {name: len(tiny_processor.encode(chat).token_ids) for name, chat in chats.items()}
    edge = lengths["unsure"]
    assert max(lengths.values()) == lengths["wrong"] > edge > lengths["sure"]
    whole = answers()
    for prompt, answer in answers(prompt_lengths=(edge,)).items():
        if lengths[prompt] > edge:
            assert answer.finish_reason == "refused" and answer.text == "" and answer.confidence == -1
            assert f"{lengths[prompt]} tokens, {edge} are allowed" in answer.error
        else:
            assert answer.text == whole[prompt].text and answer.error == ""


def test_a_prompt_without_tokens_is_refused(sampler, chats, tiny_processor):
    prompt = tiny_processor.encode(chats["sure"])
    nothing = dataclasses.replace(
        prompt, token_ids=prompt.token_ids[:0], positions=prompt.positions[:, :0], vision_index=prompt.vision_index[:0]
    )
    ((refused,), (answer,)) = sampler.generate([nothing, prompt], 1)
    assert refused.finish_reason == "refused" and "no tokens" in refused.error and answer.first_answer == "A"


def test_the_number_of_questions_about_one_video_compiles_nothing(tiny_model, tiny_processor):
    long = "A long question about what happens in the video, and why. " * 3
    config = SamplingConfig(mode="second", max_new_tokens=4, prompts=8)
    sampler = Sampler(tiny_model, tiny_processor, config)
    ask = lambda names: sampler([asked(f"{long}{name}?") for name in names])  # noqa: E731
    ask("a"), ask("bcdef")
    programs = (cache.prefill, cache.copy_prompts, engine._admit_some, engine._admit_whole)
    before = [program._cache_size() for program in programs]
    reused = sampler.usage.reused
    found = ask("ghijkl"), ask("mnopqrs")
    assert before == [program._cache_size() for program in programs] and sampler.usage.reused > reused
    alone = Sampler(tiny_model, tiny_processor, config)([asked(f"{long}k?")])[0]
    np.testing.assert_array_equal(found[0][4].token_ids, alone.token_ids)


def test_another_question_about_a_video_computes_the_question_only(tiny_model, tiny_processor):
    noise = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
    videos = [
        {"type": "video", "video": list(frames), "sample_fps": 2.0, "min_pixels": 16384, "max_pixels": 16384}
        for frames in (noise, noise[::-1])
    ]
    questions = [(0, "What?"), (0, "Why does it happen?"), (1, "What?"), (0, "Where?"), (1, "Who?")]
    prompts = [tiny_processor.encode(asked([videos[v], {"type": "text", "text": text}])) for v, text in questions]
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


def asked(content):
    return [{"role": "user", "content": content}]
