"""The two device programs of sampling: prefill a batch of prompts once, then decode all their branches.

Everything that changes between calls (weights, prompts, temperature, threshold, seeds, stop tokens) is an argument, so
nothing recompiles. Shapes: `L` layers, `B` prompts, `P` prompt slots, `G` branches per prompt, `R` branch slots.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from videoauto_jax.kernels.attention import DecodeCache, decode_attention, self_attention
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.models.vision import VisionFeatures
from videoauto_jax.protocol import gate as gates
from videoauto_jax.protocol.automaton import Automaton

RUNNING, STOPPED, EXITED, LENGTH, FAILED = range(5)
"""Why a branch ended: stop token, the gate, no slots left, logits that are not numbers."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptCache:
    """Keys and values of prompts, shared by all their branches.

    Attributes:
        k, v: per layer.
        segments: non-zero where the prompt has a token.
        next_position: M-RoPE position of the first generated token.
    """

    k: Float[Array, "L B P K H"]
    v: Float[Array, "L B P K H"]
    segments: Int[Array, "B P"]
    next_position: Int[Array, "B"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """What may change from call to call.

    Attributes:
        temperature: 0 is greedy.
        threshold: a branch ends once its first answer is closed with at least this confidence; +inf never, -inf always.
        max_new_tokens: at most this many tokens per branch, itself at most `R`.
        stop_ids: tokens that end a branch; they are its last token.
    """

    temperature: Float[Array, ""]
    threshold: Float[Array, ""]
    max_new_tokens: Int[Array, ""]
    stop_ids: Int[Array, "E"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Everything a decoding step reads and writes.

    Attributes:
        step: tokens written so far by every running branch.
        logits: of the next token.
        k, v: the branches' own caches.
        tokens, log_probs, sampling_log_probs: what was written; log-probs under the model and at the temperature.
        length: tokens of each branch, the stop token included.
        first_tokens: tokens up to and including the one that closed the first answer; 0 before that.
        finish: RUNNING or why the branch ended.
        gate: the protocol automaton's state.
        keys: each branch's random key.
    """

    step: Int[Array, ""]
    logits: Float[Array, "B G V"]
    k: Float[Array, "L B G R K H"]
    v: Float[Array, "L B G R K H"]
    tokens: Int[Array, "B G R"]
    log_probs: Float[Array, "B G R"]
    sampling_log_probs: Float[Array, "B G R"]
    length: Int[Array, "B G"]
    first_tokens: Int[Array, "B G"]
    finish: Int[Array, "B G"]
    gate: gates.GateState
    keys: UInt32[Array, "B G"]


@jax.jit
def prefill(
    model: QwenVL, inputs: ModelInputs, next_position: Int[Array, "B"], features: VisionFeatures | None = None
) -> tuple[PromptCache, Float[Array, "B V"]]:
    """Runs prompts once: their cache and the logits of the first generated token.

    Args:
        model: the model; an argument, so that new weights are used without recompiling.
        inputs: right-padded prompts.
        next_position: position that follows each prompt.
        features: the frozen tower's features of `inputs.vision`, computed earlier.
    """

    def attention(q: Array, k: Array, v: Array, cache: None) -> tuple[Array, tuple[Array, Array]]:
        return self_attention(q, k, v, inputs.segment_ids, causal=True, aligned=True), (k, v)

    hidden, (k, v) = model.forward(inputs, attention, features)
    last = jnp.sum(inputs.segment_ids > 0, axis=1) - 1
    logits = model.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])
    return PromptCache(k, v, inputs.segment_ids, next_position), logits


@partial(jax.jit, static_argnames=("branches", "slots"))
def start(
    cache: PromptCache, logits: Float[Array, "B V"], keys: UInt32[Array, "B G"], *, branches: int, slots: int
) -> DecodeState:
    """The state before the first token of `branches` branches with `slots` slots each."""
    layers, rows, _, kv_heads, size = cache.k.shape
    own = jnp.zeros((layers, rows, branches, slots, kv_heads, size), cache.k.dtype)
    written = jnp.zeros((rows, branches, slots), jnp.float32)
    zeros = jnp.zeros((rows, branches), jnp.int32)
    return DecodeState(
        step=jnp.zeros((), jnp.int32),
        logits=jnp.broadcast_to(logits[:, None], (rows, branches, logits.shape[-1])),
        k=own,
        v=own,
        tokens=written.astype(jnp.int32),
        log_probs=written,
        sampling_log_probs=written,
        length=zeros,
        first_tokens=zeros,
        finish=zeros,
        gate=gates.init((rows, branches)),
        keys=keys,
    )


@partial(jax.jit, donate_argnames="state")
def decode(
    model: QwenVL,
    cache: PromptCache,
    state: DecodeState,
    automaton: Automaton,
    settings: Settings,
    until: Int[Array, ""],
) -> DecodeState:
    """Decodes until every branch has ended, or `until` tokens have been written.

    The state is donated: its caches are updated in place.
    """

    def running(state: DecodeState) -> Bool[Array, ""]:
        return (state.step < until) & jnp.any(state.finish == RUNNING)

    def step(state: DecodeState) -> DecodeState:
        state, token = _write(state, automaton, settings)
        return _advance(model, cache, state, token)

    return jax.lax.while_loop(running, step, state)


def _write(state: DecodeState, automaton: Automaton, settings: Settings) -> tuple[DecodeState, Int[Array, "B G"]]:
    """Samples a token for every running branch, records it, and decides which branches end."""
    active = state.finish == RUNNING
    token, log_prob, sampling_log_prob = _sample(state, settings.temperature)
    gate = gates.advance(automaton, state.gate, token, log_prob, active)
    length = state.length + active
    closed = gates.first_closed(automaton, gate)
    confident = closed & (gate.confidence >= settings.threshold)
    reasons = [
        (~jnp.all(jnp.isfinite(state.logits), axis=-1), FAILED),
        (jnp.any(token[..., None] == settings.stop_ids, axis=-1), STOPPED),
        (confident, EXITED),
        (length >= settings.max_new_tokens, LENGTH),
    ]
    finish = jnp.select([when for when, _ in reasons], [why for _, why in reasons], RUNNING)
    put = lambda old, new: old.at[:, :, state.step].set(jnp.where(active, new, old[:, :, state.step]))  # noqa: E731
    written = dataclasses.replace(
        state,
        tokens=put(state.tokens, token),
        log_probs=put(state.log_probs, log_prob),
        sampling_log_probs=put(state.sampling_log_probs, sampling_log_prob),
        length=length,
        first_tokens=jnp.where(closed & (state.first_tokens == 0), length, state.first_tokens),
        finish=jnp.where(active, finish, state.finish),
        gate=gate,
    )
    return written, token


def _sample(state: DecodeState, temperature: Float[Array, ""]) -> tuple[Array, Array, Array]:
    """A token per branch by the Gumbel trick. A branch's noise depends on its own key and step only."""
    safe = jnp.maximum(temperature, 1e-6)

    def noise() -> Float[Array, "B G V"]:
        draw = lambda key: jax.random.gumbel(jax.random.fold_in(jax.random.key(key), state.step), logits.shape[-1:])  # noqa: E731
        return jax.vmap(jax.vmap(draw))(state.keys) * safe

    logits = state.logits
    token = jnp.argmax(logits + jax.lax.cond(temperature > 0, noise, lambda: jnp.zeros_like(logits)), axis=-1)
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    log_prob = chosen - jax.nn.logsumexp(logits, axis=-1)
    tempered = chosen / safe - jax.nn.logsumexp(logits / safe, axis=-1)
    return token.astype(jnp.int32), log_prob, jnp.where(temperature > 0, tempered, log_prob)


def _advance(model: QwenVL, cache: PromptCache, state: DecodeState, token: Int[Array, "B G"]) -> DecodeState:
    """Runs the new tokens through the model: their logits, and their keys and values into the branches' caches."""
    lengths = jnp.full(token.shape, state.step)
    caches = DecodeCache(cache.k, cache.v, cache.segments, state.k, state.v, lengths)

    def attention(q: Array, k: Array, v: Array, layer: Array) -> tuple[Array, tuple[Array, Array]]:
        return decode_attention(q, k, v, caches, layer), (k, v)

    position = jnp.broadcast_to(cache.next_position[:, None] + state.step, token.shape)
    x = model.text.embed(token)
    layers = jnp.arange(cache.k.shape[0])
    hidden, (k, v) = model.text(x, jnp.stack([position] * 3), attention, caches=layers)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        logits=model.logits(hidden),
        k=jax.lax.dynamic_update_slice_in_dim(state.k, k[:, :, :, None], state.step, axis=3),
        v=jax.lax.dynamic_update_slice_in_dim(state.v, v[:, :, :, None], state.step, axis=3),
    )
