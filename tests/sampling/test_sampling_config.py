"""Settings: those that make no sense are refused in one line, and what a checkpoint says of them."""

import json
import re

import pytest

from videoauto_jax.errors import ConfigError, ModelError, VideoAutoError
from videoauto_jax.sampling.config import SamplingConfig, checkpoint_defaults


@pytest.mark.parametrize(
    "setting",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"prompts": 0},
        {"mode": "third"},
        {"top_p": 0.0},
        {"top_p": 1e-60},  # 0 on the device: no token would be left
        {"temperature": 1e300},
        {"repetition_penalty": 1e-60},
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
        {"top_k": 2**40},
        {"forced_format": "yes"},
        {"reuse_prefixes": None},
        {"layout": "fsdp"},
        {"prompt_lengths": 64},
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
def test_branches_are_counted_in_whole_numbers(sampler, chats, branches):
    with pytest.raises(ConfigError, match=f"branches={branches}"):
        sampler.rollout([chats["sure"]], branches=branches)


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
