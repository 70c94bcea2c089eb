"""The sampler in full size on one GPU: whether it is right, then how fast.

Random weights, bfloat16. A decoding step of 16 branches behind a long prompt against the time that reading weights and
cache takes at the memory's speed, also with caches in 8 bits; 16 continuations against transformers' `generate`; tokens
per second of many short prompts.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sampling_theirs import BRANCHES, TOKENS
from sampling_work import endless, prompt, timed

from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.processor import Processor, load_processor
from videoauto_jax.models.config import QwenVLConfig
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.qwen_vl import QwenVL, parameter_paths
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig, settings
from videoauto_jax.sampling.schedule import branch_keys
from videoauto_jax.sampling.table import Entry, Table, Writing

CACHES = ("model", "int8", "float8_e4m3fn")
LIMIT = 0.15
"""Mean difference of log p from the forward pass of whole rows beyond which nothing is timed: what is wrong is off by
1 or so, bfloat16 by some hundredths."""
ROUNDS, STEPS = 3, 36


def measure(
    config: QwenVLConfig,
    folder: Path,
    lengths: Sequence[int],
    bandwidth: float,
    theirs: dict,
    *,
    slots: int = 256,
    tokens: int = 256,
) -> Iterator[dict]:
    """Figures, one part after the other.

    Args:
        config: the model's facts.
        folder: of any processor.
        lengths: of long prompts, in tokens. The first is that of `theirs`, with the last 8 bits are measured too.
        bandwidth: of the GPU's memory, bytes per second.
        theirs: what `sampling_theirs` found.
        slots, tokens: short prompts, and what is written to each.
    """
    make = jax.jit(lambda: QwenVL(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    model, processor, rng = make(), endless(load_processor(folder)), np.random.default_rng(0)
    plain = SamplingConfig(
        mode="record", temperature=1.0, prompts=1, reuse_prefixes=False, max_new_tokens=TOKENS, prefill_tokens=8192
    )
    off = {dtype: difference(model, processor, dtype, min(lengths[0], 2048)) for dtype in CACHES}
    yield {"mean |difference| of log p": off}
    if not max(off.values()) < LIMIT:  # nan is not either
        raise SystemExit(f"log-probabilities are off by {off}, more than {LIMIT}: nothing is timed")
    for length in lengths:
        text = prompt(rng, length, 256)
        for dtype in CACHES if length == lengths[-1] else CACHES[:1]:
            name = f"{BRANCHES} branches behind {length}" + (f", {dtype}" if dtype != "model" else "")
            yield {name: one_step(model, processor, dataclasses.replace(plain, cache_dtype=dtype), text, bandwidth)}
        if length == theirs.get("length"):
            sampler = Sampler(model, processor, plain)
            write = partial(sampler.generate, [text], BRANCHES)
            write()
            seconds = statistics.median(timed(write) for _ in range(ROUNDS))
            ratio = theirs["seconds"] / seconds
            yield {f"{BRANCHES} continuations of {length}": {"seconds": seconds, "against transformers": ratio}}
    sampler = Sampler(model, processor, dataclasses.replace(plain, max_new_tokens=tokens, prompts=slots))
    write = partial(sampler.generate, [prompt(rng, 192, 256) for _ in range(slots)], 1)
    write()
    seconds = statistics.median(timed(write) for _ in range(ROUNDS))
    yield {f"{slots} slots, tokens/s": slots * tokens / seconds}


def difference(model: QwenVL, processor: Processor, dtype: str, length: int) -> float:
    """Mean |difference| of the sampler's log-probabilities from those of the forward pass of whole rows.

    The prompt goes through the model in two pieces, so that the second reads what the first has left in the cache.
    """
    text = prompt(np.random.default_rng(1), length, 256)
    config = SamplingConfig(
        mode="record", temperature=1.0, prompts=1, max_new_tokens=32, prefill_tokens=length // 2, cache_dtype=dtype
    )
    (group,) = Sampler(model, processor, config).generate([text], 2)
    errors = []
    for answer in group:
        row = np.append(text.token_ids, answer.token_ids)[None]
        positions = np.broadcast_to(np.arange(row.size, dtype=np.int32), (3, 1, row.size))
        inputs = ModelInputs(row, positions, np.ones_like(row), np.full_like(row, -1), None)
        errors.append(np.abs(_log_probs(model, inputs, count=len(answer.token_ids)) - answer.logprobs))
    return float(np.mean(errors))


@partial(jax.jit, static_argnames="count")
def _log_probs(model: QwenVL, inputs: ModelInputs, count: int) -> jax.Array:
    logits = model.logits(model.hidden(inputs)[0, -count - 1 : -1])
    return jnp.take_along_axis(jax.nn.log_softmax(logits), inputs.token_ids[0, -count:, None], axis=-1)[:, 0]


def one_step(
    model: QwenVL, processor: Processor, config: SamplingConfig, text: Encoded, bandwidth: float
) -> dict[str, float]:
    """A prompt's prefill, and a decoding step of its branches, against the time that reading takes."""
    automaton = Sampler(model, processor, config).automaton
    table, writing = Table(config, 1, BRANCHES, 0), Writing(model, automaton, settings(config, ()))
    entry = Entry(0, text, None, branch_keys(text, BRANCHES, 0))
    table.free.clear()

    def prefill() -> None:
        table.fill(writing, [entry])
        table.progress()

    def decode(longest: int, most: int) -> None:
        used = table.decode(writing, longest=longest, most=most, enough=0)
        assert int(used.steps) == most  # and waits

    prefill()
    seconds = timed(prefill)
    decode(1, 8)
    starts = range(9, TOKENS - STEPS + 1, STEPS)
    step = statistics.median(timed(partial(decode, start, STEPS)) for start in starts) / STEPS
    floor = step_bytes(model, len(text.token_ids) + BRANCHES * TOKENS // 2, config.cache_dtype) / bandwidth
    return {"prefill_s": seconds, "step_ms": 1e3 * step, "floor_ms": 1e3 * floor, "ratio": step / floor}


def step_bytes(model: QwenVL, tokens: int, dtype: str) -> int:
    """What a decoding step reads: the decoder's and the head's weights, and so many tokens of caches."""
    text = model.config.text
    sizes = {path: array.nbytes for path, array in parameter_paths(model).items()}
    embedding = 0 if text.tied_head else sizes["text/embed/embedding"]
    weights = sum(size for path, size in sizes.items() if path.startswith(("text/", "head/"))) - embedding
    vector = 2 * text.head_dim if dtype == "model" else text.head_dim + 4  # and its scale, float32
    return weights + 2 * text.num_layers * text.num_kv_heads * vector * tokens
