"""Speed of the sampler, as ratios measured in one run.

    python bench/sampling.py                                          a tiny model on this machine, with transformers
    python bench/sampling.py --model qwen3-vl-8b-instruct              one GPU: random weights in full size, bfloat16
    python bench/sampling.py --aot [--target v6e:2x2]                  compiles full-size programs for what is not here

On this machine: tokens per second against transformers' `generate` for 16 continuations of each of 8 prompts of 512
tokens; what `auto` saves in time against what it saves in tokens; the share of decoding steps that are useful when
responses have all lengths; what 8 bits cost. On a GPU: see sampling_gpu.py.
"""

import argparse
import dataclasses
import heapq
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if "--aot" in sys.argv:
    import ahead  # noqa: F401  sets the environment that jax reads when it is imported

import jax
import jax.numpy as jnp
import numpy as np
import sampling_gpu
import sampling_theirs
from sampling_work import endless, prompt, timed

from videoauto_jax.cli.quickstart.tiny import TinySpec, make_checkpoint
from videoauto_jax.data.processor import Processor, load_processor
from videoauto_jax.models.config import QwenVLConfig, parse_config
from videoauto_jax.models.hf import load_model
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.protocol.automaton import compile_automaton
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig

ROOT = Path(__file__).parents[1]
TEXT = "\\boxed{A}<think>It looks like 3 red and 4 blue dots.</think>\\boxed{B} What colour is the lamp at second 5?"
PUBLISHED = ("qwen2.5-vl-7b-instruct", "qwen3-vl-8b-instruct")
ROUNDS = 5
LEANING = {"\\": 4.0, "}": 4.3, "<think>": 4.0, "</think>": 1.0, "<|im_end|>": 6.0}
"""What is added to the logits of a random model, so that answers have a few tokens and responses 150 in the mean: what
a model that always thinks needs (149, paper)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Leaning:
    """A model some of whose logits are raised."""

    model: QwenVL
    raised: jax.Array

    config = property(lambda self: self.model.config)
    text = property(lambda self: self.model.text)

    def forward(self, *arguments, **options):
        return self.model.forward(*arguments, **options)

    def logits(self, hidden):
        return self.model.logits(hidden) + self.raised


def lean(model: QwenVL, processor: Processor) -> Leaning:
    raised = np.zeros(model.config.text.vocab_size, np.float32)
    for text, value in LEANING.items():
        raised[processor.tokenizer.convert_tokens_to_ids(text)] = value
    return Leaning(model, jnp.asarray(raised))


def against_transformers(folder: Path, prompts: int, branches: int, length: int, tokens: int) -> dict:
    """Both write the same number of tokens, taking turns."""
    import torch
    from transformers import AutoModelForImageTextToText

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    model, processor = load_model(folder, dtype="float32"), endless(load_processor(folder))
    config = SamplingConfig(mode="record", max_new_tokens=tokens, temperature=1.0, prompts=prompts)
    config = dataclasses.replace(config, reuse_prefixes=False)  # every turn computes its prompts
    sampler, rng = Sampler(model, processor, config), np.random.default_rng(0)
    batch = [prompt(rng, length, 256) for _ in range(prompts)]
    ids = torch.tensor(np.stack([each.token_ids for each in batch])).long()
    options = {"do_sample": True, "num_return_sequences": branches, "max_new_tokens": tokens, "eos_token_id": None}

    def other() -> None:
        with torch.no_grad():
            written = theirs.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, top_k=0, **options)
        assert written.shape == (prompts * branches, length + tokens)

    def ours() -> None:
        groups = sampler.generate(batch, branches)
        assert all(len(answer.token_ids) == tokens for group in groups for answer in group)

    ours(), other()
    rounds = [{act: timed(act) for act in order} for order in in_turns((ours, other))]
    ratios = [each[other] / each[ours] for each in rounds]
    return {
        "what": f"{prompts} prompts of {length} tokens x {branches} branches of {tokens} tokens, float32",
        "seconds": statistics.median(each[ours] for each in rounds),
        "transformers_seconds": statistics.median(each[other] for each in rounds),
        "ratio": statistics.median(ratios),
        "ratios": sorted(ratios),
    }


def in_turns(two: tuple) -> list[tuple]:
    """An order for each round; every second time the other way round."""
    return [two[:: (-1) ** n] for n in range(ROUNDS)]


def gate(folder: Path, prompts: int, slots: int, length: int, tokens: int) -> dict:
    """`auto` with the median confidence as threshold: about half of the prompts stop behind their first answer.

    The model is random, so the format is forced, and thoughts end where chance ends them, at all lengths.
    """
    processor = load_processor(folder)
    model = lean(load_model(folder, dtype="float32"), processor)
    config = SamplingConfig(
        mode="record", max_new_tokens=tokens, temperature=1.0, forced_format=True, prompts=slots, reuse_prefixes=False
    )
    rng = np.random.default_rng(0)
    batch = [prompt(rng, length, 256) for _ in range(prompts)]
    samplers = {mode: Sampler(model, processor, config) for mode in ("record", "auto")}
    confidences = [answer.confidence for _, (answer,) in samplers["record"].stream(batch)]
    threshold = float(np.median([c for c in confidences if c >= 0]))
    samplers["auto"].config = dataclasses.replace(config, mode="auto", threshold=threshold)
    written = {}

    def run(mode: str) -> None:
        written[mode] = [len(answer.token_ids) for _, (answer,) in samplers[mode].stream(batch)]

    run("auto")
    rounds = [{mode: timed(partial(run, mode)) for mode in order} for order in in_turns(("record", "auto"))]
    full, short = (sum(written[mode]) for mode in ("record", "auto"))
    saved_tokens, saved_times = 1 - short / full, sorted(1 - each["auto"] / each["record"] for each in rounds)
    saved_time = statistics.median(saved_times)
    usage = {mode: sampler.usage for mode, sampler in samplers.items()}
    return {
        "what": f"{prompts} prompts of {length} tokens through {slots} slots, at most {tokens} tokens",
        "tokens": {mode: lengths(counts) for mode, counts in written.items()},
        "saved_tokens": saved_tokens,
        "saved_time": saved_time,
        "ratio": saved_time / saved_tokens,
        "ratios": [each / saved_tokens for each in saved_times],
        "useful_share": {mode: each.useful / each.slots for mode, each in usage.items()},
    }


def groups(folder: Path, prompts: int, slots: int, branches: int, length: int, tokens: int) -> dict:
    """The useful share where a group holds its slot until its last branch ends, and what it would be if each branch's
    place were taken as soon as it ends; responses as long as those of `gate`."""
    processor = load_processor(folder)
    model = lean(load_model(folder, dtype="float32"), processor)
    config = SamplingConfig(mode="record", max_new_tokens=tokens, temperature=1.0, forced_format=True, prompts=slots)
    sampler, rng = Sampler(model, processor, config), np.random.default_rng(0)
    written = sampler.generate([prompt(rng, length, 256) for _ in range(prompts)], branches)
    counts = [len(answer.token_ids) for group in written for answer in group]
    ends = [0] * (slots * branches)
    for count in counts:
        heapq.heapreplace(ends, ends[0] + count - 1)  # the first token needs no step
    return {
        "what": f"{prompts} prompts of {length} tokens x {branches} branches through {slots} slots",
        "tokens": lengths(counts),
        "useful_share": sampler.usage.useful / sampler.usage.slots,
        "useful_share_one_by_one": sum(count - 1 for count in counts) / (len(ends) * max(ends)),
    }


def lengths(counts: list[int]) -> dict:
    return {"sum": int(np.sum(counts)), "median": float(np.median(counts)), "most": int(np.max(counts))}


def eight_bits(folder: Path, prompts: int, length: int, tokens: int) -> dict:
    """Log-probabilities of the same tokens with caches in 8 bits, and in bfloat16 for comparison."""
    exact, processor = load_model(folder, dtype="float32"), endless(load_processor(folder))
    rng = np.random.default_rng(0)
    batch = [prompt(rng, length, 256) for _ in range(prompts)]
    config = SamplingConfig(mode="record", max_new_tokens=tokens, prompts=prompts)
    expected = Sampler(exact, processor, config).generate(batch, 1)
    found = {}
    for name in ("int8", "float8_e4m3fn", "bfloat16"):
        model = load_model(folder, dtype="bfloat16") if name == "bfloat16" else exact
        changed = config if name == "bfloat16" else dataclasses.replace(config, cache_dtype=name)
        found[name] = difference(Sampler(model, processor, changed).generate(batch, 1), expected)
    return {"what": f"mean |difference| of log p over equal tokens, {prompts} prompts of {length} tokens", **found}


def difference(found: list, expected: list) -> float:
    errors = []
    for (mine,), (other,) in zip(found, expected):
        differ = np.flatnonzero(mine.token_ids != other.token_ids)
        same = differ[0] if len(differ) else len(mine.token_ids)
        errors += np.abs(mine.logprobs - other.logprobs)[:same].tolist()
    return float(np.mean(errors))


def compile_ahead(folder: Path, names: Sequence[str], target: str) -> dict:
    """What the sampler's programs need in full size; the automaton is that of a small tokenizer."""
    import sampling_ahead

    tokenizer = load_processor(folder).tokenizer
    models = {name: full_size(name) for name in names}
    automata = {name: compile_automaton(tokenizer, config.text.vocab_size) for name, config in models.items()}
    return {target: {"jax": jax.__version__, "records": sampling_ahead.compile_all(models, automata, target)}}


def full_size(name: str) -> QwenVLConfig:
    """A published model's facts."""
    return parse_config(json.loads(model_file(name).read_text()))


def model_file(name: str) -> Path:
    """Where they are written down."""
    return ROOT / "configs" / "models" / f"{name}.json"


def on_cpu(folder: Path) -> dict:
    """What a tiny model can tell."""
    cores, versions = len(os.sched_getaffinity(0)), f"Python {platform.python_version()}, jax {jax.__version__}"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{cores} cores, {versions}",
        "eight_bits": eight_bits(folder, 8, 512, 32),
        "gate": gate(folder, 384, 16, 128, 512),
        "groups": groups(folder, 48, 4, 16, 128, 512),
        "transformers": against_transformers(folder, 8, 16, 512, 32),
    }


def summary(found: dict) -> list[str]:
    """What `on_cpu` finds, beside what is wanted: medians of all rounds, and their least and most."""
    theirs, gate, groups = found["transformers"], found["gate"], found["groups"]
    spread = lambda values, form: f"{min(values):{form}} to {max(values):{form}} in {len(values)} rounds"  # noqa: E731
    useful, bits = gate["useful_share"], found["eight_bits"]
    return [
        f"times as fast as transformers' generate: {theirs['ratio']:.1f} ({spread(theirs['ratios'], '.1f')}; wanted 5)",
        f"auto saves: {gate['saved_tokens']:.0%} of the tokens, {gate['saved_time']:.0%} of the time",
        f"time saved for tokens saved: {gate['ratio']:.2f} ({spread(gate['ratios'], '.2f')}; wanted 0.80)",
        f"useful steps: {useful['record']:.0%} in record, {useful['auto']:.0%} in auto (wanted 85%)",
        f"useful steps of groups: {groups['useful_share']:.0%}, one by one {groups['useful_share_one_by_one']:.0%}",
        "mean difference of log p: " + ", ".join(f"{bits[name]:.1e} in {name}" for name in bits if name != "what"),
    ]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of results")
    parser.add_argument("--model", help="a name in configs/models: full size on one GPU")
    parser.add_argument("--aot", action="store_true", help="compile only, for devices that are not here")
    parser.add_argument("--target", default="h100", help="of --aot: h100, or a TPU topology such as v6e:2x2")
    parser.add_argument("--lengths", type=int, nargs="+", default=[16384, 65536], help="prompts of that, in tokens")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="of the GPU's memory, bytes per second")
    options = parser.parse_args()
    lines: list[str] = []
    options.out.mkdir(parents=True, exist_ok=True)
    place = options.out / ("sampling_aot.json" if options.aot else "sampling.json")
    result = json.loads(place.read_text()) if place.exists() else {}
    if options.model and not options.aot:
        # Before jax takes the GPU's memory.
        theirs = sampling_theirs.in_a_process(model_file(options.model), min(options.lengths))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder, [TEXT] * 200, 0, TinySpec())
        if options.aot:
            result |= compile_ahead(folder, [options.model] if options.model else PUBLISHED, options.target)
        elif options.model:
            result[options.model] = {"device": jax.devices()[0].device_kind, "transformers": theirs}
            sizes = options.lengths, options.bandwidth
            for figures in sampling_gpu.measure(full_size(options.model), folder, *sizes, theirs):
                result[options.model] |= figures
                print(json.dumps(figures), flush=True)
                place.write_text(json.dumps(result, indent=1) + "\n")  # what there is, should time run out
        else:
            found = on_cpu(folder)
            result, lines = result | found, summary(found)
    place.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1), *lines, sep="\n")


if __name__ == "__main__":
    main()
