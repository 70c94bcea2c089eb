"""The two programs that work on the slots.

`admit` puts prompts into free slots and writes the first token of their branches. `decode` writes further tokens of all
branches until some have ended; then the host takes what is finished and admits what waits. Every branch counts its own
steps, so neighbours in different stages do not matter. What changes between calls (weights, prompts, temperature,
threshold, seeds, stop tokens) is an argument: nothing recompiles.

Shapes: `L` layers, `B` prompt slots, `P` tokens of a prompt, `G` branches per prompt, `R` tokens of a branch.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from videoauto_jax.kernels.attention import DecodeCache, decode_attention
from videoauto_jax.kernels.quantized import Quantized, stored
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.protocol import gate as gates
from videoauto_jax.protocol.automaton import Automaton
from videoauto_jax.sampling.cache import PromptCache
from videoauto_jax.sampling.draw import Sampling, draw
from videoauto_jax.sampling.placing import keep
from videoauto_jax.sampling.slots import EXITED, FAILED, LENGTH, RUNNING, STOPPED, Branches, Slots, begin


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """What may change from call to call.

    Attributes:
        sampling: how tokens are drawn.
        threshold: a branch ends once its first answer is closed with at least this confidence; +inf never, -inf always.
        max_new_tokens: at most this many tokens per branch, itself at most `R`.
        stop_ids: tokens that end a branch; they are its last token.
    """

    sampling: Sampling
    threshold: Float[Array, ""]
    max_new_tokens: Int[Array, ""]
    stop_ids: Int[Array, "E"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Used:
    """What a call of `decode` did.

    Attributes:
        steps: decoding steps.
        useful: tokens they wrote; the most there could be are `steps * B * G`.
    """

    steps: Int[Array, ""]
    useful: Int[Array, ""]


def admit(
    slots: Slots,
    prompts: PromptCache,
    logits: Float[Array, "r V"],
    index: Int[Array, "r"],
    token_ids: Int[Array, "r P"],
    keys: UInt32[Array, "r G"],
    start: Int[Array, "r"],
    automaton: Automaton,
    settings: Settings,
    *,
    whole: bool,
) -> Slots:
    """Puts prompts into slots and writes the first token of all their branches.

    Args:
        slots: donated.
        prompts: as `prefill` returns them; donated if they are `whole`.
        logits: of the first token.
        index: slot of each prompt; one beyond the last slot belongs to no prompt.
        token_ids: of each prompt; -1 on padding.
        keys: random keys of their branches.
        start: the automaton's state in which their branches begin.
        automaton: the protocol's.
        settings: how to write.
        whole: prompt i goes to slot i, and there are as many as slots: what the slots held is gone, nothing is copied.
    """
    program = _admit_whole if whole else _admit_some
    return program(slots, prompts, logits, index, token_ids, keys, start, automaton, settings)


def _admit(
    slots: Slots,
    prompts: PromptCache,
    logits: Array,
    index: Array,
    token_ids: Array,
    keys: Array,
    start: Array,
    automaton: Automaton,
    settings: Settings,
    *,
    whole: bool,
) -> Slots:
    tokens = slots.branches.tokens.shape[-1]
    count = slots.branches.tokens.shape[0]
    vocabulary = logits.shape[-1]
    of_row = jnp.arange(len(token_ids))[:, None]
    present = jnp.where(token_ids < 0, vocabulary, token_ids)
    seen = jnp.zeros((len(token_ids), vocabulary), bool).at[of_row, present].set(True, mode="drop")
    fresh = begin(keys, start, index < count, seen, tokens)
    spread = jnp.broadcast_to(logits[:, None], (*keys.shape, logits.shape[-1]))
    fresh = _write(fresh, spread, automaton, settings)
    by_row = lambda old, new: new if whole else old.at[index].set(new, mode="drop")  # noqa: E731
    by_layer = lambda old, new: new if whole else old.at[:, index].set(new, mode="drop")  # noqa: E731
    old = slots.prompts
    k, v = jax.tree.map(by_layer, (old.k, old.v), (prompts.k, prompts.v))
    length, position = by_row(old.length, prompts.length), by_row(old.next_position, prompts.next_position)
    branches = jax.tree.map(by_row, slots.branches, fresh)
    return keep(Slots(PromptCache(k, v, length, position), slots.k, slots.v, branches))


_admit_whole = jax.jit(partial(_admit, whole=True), donate_argnums=(0, 1))
_admit_some = jax.jit(partial(_admit, whole=False), donate_argnums=0)


WEIGHTS_STAY = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_dot_merger_threshold_mb": 0}
"""On GPUs, XLA's own products copy a layer's weights out of the stack before they read them, and products of the same
rows are joined by copying their weights together: a step would move three times the bytes it has to. cuBLAS reads
weights where they are."""


@partial(jax.jit, static_argnames="reach", donate_argnames="slots", compiler_options=WEIGHTS_STAY)
def decode(
    model: QwenVL,
    slots: Slots,
    automaton: Automaton,
    settings: Settings,
    most: Int[Array, ""],
    enough: Int[Array, ""],
    *,
    reach: int,
) -> tuple[Slots, Used]:
    """Writes until `most` tokens have been written or no more than `enough` prompts have a branch that runs.

    Args:
        model: the model.
        slots: donated: its caches are updated in place.
        automaton: the protocol's.
        settings: how to write.
        most: steps.
        enough: prompts.
        reach: no branch gets longer than this; static, and a few values only.
    """
    prompts = slots.prompts

    def going(carry: tuple) -> Bool[Array, ""]:
        _, _, branches, used = carry
        running = jnp.any(branches.finish == RUNNING, axis=1)
        return (used.steps < most) & (jnp.sum(running) > enough)

    def step(carry: tuple) -> tuple:
        k, v, branches, used = carry
        running = jnp.sum(branches.finish == RUNNING)
        logits, k, v = _advance(model, prompts, k, v, branches, reach)
        branches = _write(branches, logits, automaton, settings)
        return k, v, keep(branches), Used(used.steps + 1, used.useful + running)

    nothing = Used(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    k, v, branches, used = jax.lax.while_loop(going, step, (slots.k, slots.v, slots.branches, nothing))
    return keep(Slots(prompts, k, v, branches)), used


def _write(branches: Branches, logits: Float[Array, "B G V"], automaton: Automaton, settings: Settings) -> Branches:
    """Draws a token for every running branch, records it, and decides which branches end. One whose logits are not
    numbers writes nothing more."""
    running, sound = branches.finish == RUNNING, jnp.all(jnp.isfinite(logits), axis=-1)
    active = running & sound
    room = settings.max_new_tokens - branches.length
    allowed = lambda: gates.allowed_tokens(automaton, branches.gate, room)  # noqa: E731
    drawn = draw(logits, branches.seen, allowed, branches.keys, branches.length, settings.sampling)
    gate = gates.advance(automaton, branches.gate, drawn.token, drawn.penalised_log_prob, active)
    length = branches.length + active
    closed = gates.first_closed(automaton, gate)
    confident = closed & (gate.confidence >= settings.threshold)
    # The protocol knows ends at which the checkpoint does not stop (its padding); behind them nothing is well-formed.
    complete = settings.sampling.forced & gates.finished(automaton, gate)
    reasons = [
        (~sound, FAILED),
        (jnp.any(drawn.token[..., None] == settings.stop_ids, axis=-1) | complete, STOPPED),
        (confident, EXITED),
        (length >= settings.max_new_tokens, LENGTH),
    ]
    finish = jnp.select([when for when, _ in reasons], [why for _, why in reasons], RUNNING)
    here = active[..., None] & (jnp.arange(branches.tokens.shape[-1]) == branches.length[..., None])
    put = lambda old, new: jnp.where(here, new[..., None], old)  # noqa: E731
    return dataclasses.replace(
        branches,
        tokens=put(branches.tokens, drawn.token),
        log_probs=put(branches.log_probs, drawn.log_prob),
        sampling_log_probs=put(branches.sampling_log_probs, drawn.sampling_log_prob),
        length=length,
        first_tokens=jnp.where(closed & (branches.first_tokens == 0), length, branches.first_tokens),
        finish=jnp.where(running, finish, branches.finish),
        gate=gate,
        seen=jax.vmap(jax.vmap(lambda seen, token, now: seen.at[token].max(now)))(branches.seen, drawn.token, active),
    )


def _advance(
    model: QwenVL, prompts: PromptCache, k: Array | Quantized, v: Array | Quantized, branches: Branches, reach: int
) -> tuple[Float[Array, "B G V"], Array | Quantized, Array | Quantized]:
    """Runs every branch's newest token: the logits of the next, and its keys and values into the branch's cache.

    A branch that has ended is not given anything to attend to, nor is a prompt none of whose branches run: what is not
    read costs a step no time where it waits for memory.

    What is not a number is kept as 0: the branch ends with these logits, but its slot is read by later ones, and what a
    mask gives no weight must be a number all the same.
    """
    place = jnp.maximum(branches.length - 1, 0)
    token = jnp.take_along_axis(branches.tokens, place[..., None], axis=-1)[..., 0]
    running = branches.finish == RUNNING
    length = jnp.where(jnp.any(running, axis=1), prompts.length, 0)
    segments = jnp.arange(prompts.capacity) < length[:, None]
    caches = DecodeCache(prompts.k, prompts.v, segments, k, v, jnp.where(running, place, 0), reach)

    def attention(q: Array, k: Array, v: Array, layer: Array) -> tuple[Array, tuple[Array, Array]]:
        return decode_attention(q, k, v, caches, layer), (k, v)

    position = prompts.next_position[:, None] + place
    layers = jnp.arange(k.shape[0])
    hidden, new = model.text(model.text.embed(token), jnp.stack([position] * 3), attention, caches=layers)
    numbers = lambda x: jnp.where(jnp.isfinite(x), x, 0)  # noqa: E731
    new = stored(numbers(new[0]), k), stored(numbers(new[1]), v)
    k, v = jax.tree.map(partial(_put, place=place), (k, v), new)
    return model.logits(hidden), k, v


def _put(cache: Float[Array, "L B G R ..."], new: Float[Array, "L B G ..."], place: Int[Array, "B G"]) -> Array:
    """The cache with each branch's newest token in its place.

    Prompts and branches are batch axes of the scatter: with indices in their stead (`cache.at[:, b, g, place]`), the
    partitioner gathers what is new from all devices, and `vmap` would turn the whole cache.
    """
    axes = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(0, *range(3, new.ndim)),
        inserted_window_dims=(3,),
        scatter_dims_to_operand_dims=(3,),
        operand_batching_dims=(1, 2),
        scatter_indices_batching_dims=(0, 1),
    )
    return jax.lax.scatter(
        cache, place[..., None], new, axes, indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds"
    )
