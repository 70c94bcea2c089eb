"""Compiles the sampler's programs for devices that are not here, in the models' real sizes, and says what they need."""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial

import ahead
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from videoauto_jax.models.config import QwenVLConfig
from videoauto_jax.models.hf import abstract_model
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.vision import VisionEmbeddings
from videoauto_jax.protocol.automaton import Automaton
from videoauto_jax.sampling import cache, engine
from videoauto_jax.sampling.cache import PromptCache
from videoauto_jax.sampling.config import SamplingConfig
from videoauto_jax.sampling.sampler import settings
from videoauto_jax.sampling.slots import Slots, empty


@dataclasses.dataclass(frozen=True)
class Work:
    """What is sampled: `slots` prompts of `prompt` tokens with `branches` branches of `tokens` tokens each.

    Attributes:
        piece: tokens of a prompt that go through the model at once.
        reach: see `engine.decode`.
        cache_dtype: of keys and values, None for the model's.
        context: devices over which prompts are split.
    """

    name: str
    prompt: int
    slots: int
    branches: int
    tokens: int
    piece: int = 8192
    reach: int | None = None
    cache_dtype: str | None = None
    context: int = 1


WORKS = (
    Work("16k x 16", 16384, 1, 16, 4096, reach=1024),
    Work("64k x 16", 65536, 1, 16, 4096, reach=1024),
    Work("64k x 16, int8", 65536, 1, 16, 4096, reach=1024, cache_dtype="int8"),
    Work("64k x 16, float8_e4m3fn", 65536, 1, 16, 4096, reach=1024, cache_dtype="float8_e4m3fn"),
    Work("256 slots", 256, 256, 1, 256, piece=256),
    Work("128k x 1, context 8", 131072, 1, 1, 4096, reach=1024, context=8),
)


def compile_all(
    models: dict[str, QwenVLConfig],
    automata: dict[str, Automaton],
    target: str,
    works: Sequence[Work] = WORKS,
    only: Sequence[str] = (),
) -> list[dict]:
    """One record per model, work and program (those named in `only`, or all): bytes per device, or why it does not
    compile."""
    records, works = [], [work for work in works if work.context == 1 or target == "h100"]  # a topology has few devices
    for (name, config), work in itertools.product(models.items(), works):
        mesh = ahead.mesh(target, {"context": work.context})
        for program, (function, arguments, static) in programs(config, automata[name], work).items():
            if not only or program in only:
                record = {"model": name, "work": work.name, "program": program}
                records.append(record | attempt(mesh, function, arguments, static))
                print(*records[-1].values(), flush=True)
    return records


def attempt(mesh, function, arguments: tuple, static: dict) -> dict:
    """What a program needs."""
    try:
        specs = [_over_context if isinstance(x, PromptCache | Slots) else PartitionSpec() for x in arguments]
        return ahead.compile_for(mesh, function, *arguments, specs=specs, **static)["memory"]
    except Exception as error:  # recorded; the test decides whether that is a failure
        return {"error": f"{type(error).__name__}: {error}"[:600]}


def _over_context(x: jax.ShapeDtypeStruct) -> PartitionSpec:
    """Prompts' keys and values, which are told by their five axes."""
    return PartitionSpec(None, None, "context") if len(x.shape) == 5 else PartitionSpec()


def programs(config: QwenVLConfig, automaton: Automaton, work: Work) -> dict[str, tuple]:
    """Name -> function, shapes of its arguments, static arguments: a prompt's first and last piece, admission, a step.

    A prompt that is no longer than a piece has a first one only.
    """
    model, how = abstract_model(config, "bfloat16", "bfloat16"), settings(SamplingConfig(), (0,))
    integer = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)  # noqa: E731
    b, t, p = work.slots, work.piece, work.prompt
    inputs = ModelInputs(integer(b, t), integer(3, b, t), integer(b, t), integer(b, t), None)
    visual = jax.ShapeDtypeStruct((p, config.text.hidden_size), jnp.bfloat16)
    deepstack = len(config.vision.deepstack_layers)
    embeddings = VisionEmbeddings(visual, jax.ShapeDtypeStruct((deepstack, *visual.shape), jnp.bfloat16))
    static = {"capacity": p, "dtype": work.cache_dtype}
    first = model, None, inputs, integer(b), integer(b), embeddings
    prompts, logits = jax.eval_shape(partial(cache.prefill, **static), *first)
    found = {"prefill": (cache.prefill, first, static)}
    if t < p:
        found["prefill, next"] = cache.prefill, (model, prompts, *first[2:]), static
    sizes = {"slots": b, "branches": work.branches, "tokens": work.tokens, "vocabulary": config.text.vocab_size}
    slots = jax.eval_shape(partial(empty, **sizes), prompts)
    keys = jax.ShapeDtypeStruct((b, work.branches), jnp.uint32)
    admitted = prompts, logits, integer(b), integer(b, p), keys, integer(b), automaton, how
    found["admit"] = engine._admit_whole, (slots, *admitted), {}
    step = model, slots, automaton, how, integer(), integer()
    found["decode"] = engine.decode, step, {"reach": work.reach or work.tokens}
    return found
