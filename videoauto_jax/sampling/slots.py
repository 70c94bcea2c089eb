"""The slots: a fixed number of prompts on the device, each with its branches, and what they have written.

Shapes: `L` layers, `B` prompt slots, `P` tokens of a prompt, `G` branches per prompt, `R` tokens of a branch.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from videoauto_jax.kernels.quantized import Quantized
from videoauto_jax.protocol import gate as gates
from videoauto_jax.sampling.cache import PromptCache, extend
from videoauto_jax.sampling.placing import keep

RUNNING, STOPPED, EXITED, LENGTH, FAILED, EMPTY = range(6)
"""What a branch does: runs, or has ended by a stop token, the gate, its last slot, logits that are not numbers; or
there is none."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Branches:
    """What is written.

    Attributes:
        tokens, log_probs, sampling_log_probs: tokens, and their log-probs under the model and as drawn.
        length: tokens of each branch, the stop token included.
        first_tokens: tokens up to and including the one that closed the first answer; 0 before that.
        finish: RUNNING or why the branch ended.
        gate: the protocol automaton's state.
        keys: each branch's random key.
        seen: tokens that have occurred, in the prompt or in the branch.
    """

    tokens: Int[Array, "B G R"]
    log_probs: Float[Array, "B G R"]
    sampling_log_probs: Float[Array, "B G R"]
    length: Int[Array, "B G"]
    first_tokens: Int[Array, "B G"]
    finish: Int[Array, "B G"]
    gate: gates.GateState
    keys: UInt32[Array, "B G"]
    seen: Bool[Array, "B G V"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Everything on the device.

    Attributes:
        prompts: keys and values of the prompts, shared by their branches.
        k, v: the branches' own, plain or in 8 bits as the prompts': all their tokens but the newest.
        branches: what they have written.
    """

    prompts: PromptCache
    k: Float[Array, "L B G R K H"] | Quantized
    v: Float[Array, "L B G R K H"] | Quantized
    branches: Branches


@partial(jax.jit, static_argnames=("slots", "branches", "tokens", "vocabulary"))
def empty(like: PromptCache, *, slots: int, branches: int, tokens: int, vocabulary: int) -> Slots:
    """`slots` free slots of `branches` branches of `tokens` tokens, for prompts of `like`'s capacity and dtype."""
    room = lambda *shape: lambda x: jnp.zeros((x.shape[0], slots, *shape, *x.shape[3:]), x.dtype)  # noqa: E731
    prompt, own = (jax.tree.map(room(*shape), (like.k, like.v)) for shape in ((like.capacity,), (branches, tokens)))
    zeros = jnp.zeros(slots, jnp.int32)
    seen = jnp.zeros((slots, vocabulary), bool)
    none = begin(jnp.zeros((slots, branches), jnp.uint32), zeros, jnp.zeros(slots, bool), seen, tokens)
    return keep(Slots(PromptCache(*prompt, zeros, zeros), *own, none))


@partial(jax.jit, static_argnames="capacity")
def widen(prompts: PromptCache, *, capacity: int) -> PromptCache:
    """The same prompts with room for longer ones."""
    k, v = jax.tree.map(lambda x: extend(x, capacity), (prompts.k, prompts.v))
    return keep(dataclasses.replace(prompts, k=k, v=v))


def begin(
    keys: UInt32[Array, "B G"], start: Int[Array, "B"], used: Bool[Array, "B"], seen: Bool[Array, "B V"], tokens: int
) -> Branches:
    """Branches before their first token."""
    written = jnp.zeros((*keys.shape, tokens), jnp.float32)
    zeros = jnp.zeros(keys.shape, jnp.int32)
    finish = jnp.where(used[:, None], RUNNING, EMPTY) + zeros
    gate = gates.init(keys.shape, start[:, None])
    seen = jnp.broadcast_to(seen[:, None], (*keys.shape, seen.shape[-1]))
    return Branches(written.astype(jnp.int32), written, written, zeros, zeros, finish, gate, keys, seen)


@partial(jax.jit, donate_argnums=0)
def stop(slots: Slots, which: Bool[Array, "B G"]) -> Slots:
    """Ends branches that run."""
    branches = slots.branches
    finish = jnp.where(which & (branches.finish == RUNNING), STOPPED, branches.finish)
    return keep(dataclasses.replace(slots, branches=dataclasses.replace(branches, finish=finish)))


@jax.jit
def pick(branches: Branches, index: Int[Array, "r"]) -> Branches:
    """What the branches of some slots have written; `seen` is left out."""
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0, mode="clip"), dataclasses.replace(branches, seen=None))
