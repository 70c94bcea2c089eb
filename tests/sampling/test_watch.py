"""Text while it is written: telling it, and stop texts."""

import collections
import copy
import dataclasses

import numpy as np


def test_text_is_told_as_it_is_written(sampler, chats, tiny_processor):
    prompts = [tiny_processor.encode(chat) for chat in chats.values()]
    for changes in ({"mode": "auto"}, {"mode": "second", "stop": ("blue", "x\\b", "think>\\")}):
        sampler.config = dataclasses.replace(sampler.config, **changes)
        told = collections.defaultdict(list)
        groups = sampler.generate(prompts, 2, on_text=lambda *where, told=told: told[where[:2]].append(where[2]))
        for n, group in enumerate(groups):
            for g, answer in enumerate(group):
                assert "".join(told[n, g]) == answer.text and len(told[n, g]) > (len(answer.token_ids) > 12)
    assert groups[1][0].text.endswith("<think>No, ") and groups[1][0].finish_reason == "stop"
    assert groups[0][0].text.endswith("</") and groups[3][0].text == "no box here"


def test_a_stop_text_ends_a_branch_as_if_nothing_had_been_written_behind_it(sampler, answers):
    whole = answers(mode="second")
    for stop, text in (
        ("think", "\\boxed{A}<"),
        ("}<", "\\boxed{A"),
        ("{", "\\boxed"),
        ("B}", whole["sure"].text[:-2]),
    ):
        found = answers(mode="second", stop=(stop, "never written"))["sure"]
        count = len(found.token_ids)
        assert found.text == text and found.finish_reason == "stop"
        np.testing.assert_array_equal(found.token_ids, whole["sure"].token_ids[:count])
        np.testing.assert_array_equal(found.logprobs, whole["sure"].logprobs[:count])
        before, after = (sampler.processor.decode(found.token_ids[:n]) for n in (count - 1, count))
        assert stop not in before and stop in after
        assert found.confidence == (whole["sure"].confidence if "}" in text + stop and text != "\\boxed" else -1)


def test_a_stream_keeps_the_settings_with_which_it_began(sampler, chats, tiny_processor):
    sampler.config = dataclasses.replace(sampler.config, mode="second", prompts=1, stop=("think",))
    found = []
    for _, (answer,) in sampler.stream([tiny_processor.encode(chats["sure"])] * 2):
        found.append((answer.text, answer.finish_reason))
        sampler.config = dataclasses.replace(sampler.config, stop=("{",))
    assert found == [("\\boxed{A}<", "stop")] * 2


def test_a_stop_text_on_the_last_token_there_is(sampler, answers):
    """Nothing has been written behind it, but neither the end of the room nor the gate is why the text ends there."""
    whole = answers(mode="second")["sure"]
    count = len(whole.token_ids) - 2
    last = whole.text[len(sampler.processor.decode(whole.token_ids[: count - 1])) :][:1]
    assert last not in sampler.processor.decode(whole.token_ids[: count - 1])
    found = answers(mode="second", max_new_tokens=count, stop=(last,))["sure"]
    assert len(found.token_ids) == count and found.finish_reason == "stop" and last not in found.text
    found = answers(mode="auto", max_new_tokens=96, stop=("}",))["sure"]
    assert (found.text, found.finish_reason, found.exited, found.answer) == ("\\boxed{A", "stop", False, "")


def test_the_stop_text_that_is_complete_first_counts(sampler, answers):
    """Though a longer one begins before it, and is complete by the time the host looks."""
    found = answers(mode="second", stop=("<think>It is red", "is"))["sure"]
    assert found.text == "\\boxed{A}<think>It " and found.finish_reason == "stop"


def test_characters_of_several_tokens_are_told_whole_and_no_token_is_decoded_again(scripted, chats, tiny_processor):
    text = "Ja, 日本 né. " * 5
    sampler, decoded = scripted({"sure": [(text + "<|im_end|>", 0.999)]}, mode="second", stop=("never",)), []
    sampler.processor = copy.copy(tiny_processor)
    sampler.processor.decode = lambda tokens: decoded.append(len(tokens)) or tiny_processor.decode(tokens)
    told = []
    ((answer,),) = sampler.generate([tiny_processor.encode(chats["sure"])], 1, on_text=lambda *what: told.append(what))
    assert answer.text == text == "".join(new for *_, new in told) and len(told) > 4
    assert all("\N{REPLACEMENT CHARACTER}" not in new for *_, new in told)
    assert len(answer.token_ids) > 64 and sum(decoded) < 4 * len(answer.token_ids)  # the end and the answer anew


def test_a_special_token_may_be_a_stop(scripted, chats):
    sampler = scripted({"sure": [("It is<|im_start|> red<|im_end|>", 0.999)]}, mode="second")
    (plain,) = sampler([chats["sure"]])
    sampler.config = dataclasses.replace(sampler.config, stop=("<|im_start|>",))
    (stopped,) = sampler([chats["sure"]])
    assert (plain.text, stopped.text) == ("It is red", "It is") and stopped.finish_reason == "stop"
    assert stopped.token_ids.tolist() == plain.token_ids[: len(stopped.token_ids)].tolist()
