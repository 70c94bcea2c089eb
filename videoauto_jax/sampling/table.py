"""The slots on the device as the host sees them: fill them with prompts, let them write, take what is finished."""

import contextlib
import dataclasses
import functools
from collections import deque
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool, Float, Int, UInt32

from videoauto_jax.data.collate import bucket
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.errors import VideoAutoError
from videoauto_jax.models.inputs import ModelInputs, VisionInputs
from videoauto_jax.models.placing import fetch
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.protocol.automaton import Automaton
from videoauto_jax.protocol.grammar import begun_response
from videoauto_jax.sampling import cache, engine
from videoauto_jax.sampling.config import SamplingConfig
from videoauto_jax.sampling.pieces import Batch, Collated, Given, cut
from videoauto_jax.sampling.prefixes import Trace
from videoauto_jax.sampling.slots import FAILED, Branches, Slots, empty, pick, stop, widen
from videoauto_jax.sharding import batch_shards, place_inputs, place_vision

SMALLEST_REACH = 64
"""Shortest caches of branches that are worth a program of their own."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A prompt on its way into a slot.

    Attributes:
        slot: where to.
        prompt: the prompt.
        trace: of the prompt; None if nobody will look for it.
        keys: random keys of its branches.
        source: slot that holds the first `shared` tokens already.
        shared: 0 if none does.
    """

    slot: int
    prompt: Encoded
    trace: Trace | None
    keys: UInt32[np.ndarray, "G"]
    source: int = 0
    shared: int = 0


@dataclasses.dataclass(frozen=True)
class Writing:
    """What every program needs besides the slots: the model, the protocol, and how to write."""

    model: QwenVL
    automaton: Automaton
    settings: engine.Settings

    @functools.cached_property
    def mesh(self) -> Mesh | None:
        """The mesh on which the model lies, if it lies on one. Looking at a model's leaves takes a millisecond."""
        places = (leaf.sharding for leaf in jax.tree.leaves(self.model) if isinstance(leaf, jax.Array))
        return next((place.mesh for place in places if isinstance(place, NamedSharding)), None)

    def in_use(self) -> contextlib.AbstractContextManager:
        """What is compiled inside keeps activations on the model's mesh."""
        mesh = self.mesh
        return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)

    @property
    def shards(self) -> int:
        """Into how many parts the mesh splits rows."""
        return 1 if self.mesh is None else batch_shards(self.mesh)

    def place(self, inputs: ModelInputs | VisionInputs) -> ModelInputs | VisionInputs:
        """Host arrays on that mesh; device arrays stay where they are."""
        mesh = self.mesh
        if mesh is None or any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(inputs)):
            return inputs
        return (place_inputs if isinstance(inputs, ModelInputs) else place_vision)(inputs, mesh)


class Table:
    """The slots.

    Args:
        config: how many slots, and how long branches and prompts get.
        slots: how many there are.
        branches: of each prompt, `G`.
        pad_token_id: fills padding.
        shards: into how many parts rows are split. Prefill has a multiple of so many rows, as slots should be.

    Attributes:
        traces: the prompt whose keys and values each slot holds.
        free: slots without a branch that runs, the one that has been free for longest first.
        piece: tokens of a prompt that go through the model at once.
    """

    def __init__(self, config: SamplingConfig, slots: int, branches: int, pad_token_id: int, shards: int = 1):
        self.slots, self.branches, self.tokens = slots, branches, -(-config.max_new_tokens // 16) * 16
        self.shards = shards
        self._config, self._pad = config, pad_token_id
        self._state: Slots | None = None
        self.traces: list[Trace | None] = [None] * slots
        self._unseen: set[int] = set()
        self.free, self.piece = deque(range(slots)), config.prefill_tokens

    def refusal(self, prompt: Encoded | VideoAutoError) -> str | None:
        """Why a prompt cannot be run, or None."""
        if isinstance(prompt, VideoAutoError):
            return str(prompt)
        lengths, count = self._config.prompt_lengths, len(prompt.token_ids)
        if count == 0:
            return "the prompt has no tokens. Ask something"
        if lengths is None or count <= max(lengths):
            return None
        fix = "Lower the visual budgets or extend prompt_lengths"
        return f"the prompt has {count} tokens, {max(lengths)} are allowed. {fix}"

    def fill(self, writing: Writing, entries: Sequence[Entry], collated: Collated | None = None) -> None:
        """Prefills prompts and writes the first tokens of their branches.

        Args:
            writing: how.
            entries: in the order of `collated`, if that is given. Their slots are no longer `free`.
            collated: the prompts of all slots; what they might share with earlier ones is not looked for.
        """
        with writing.in_use():
            prompts, logits = self._prefill(writing, entries, collated)
            rows = len(logits)
            if self._state is None:
                sizes = {"slots": self.slots, "branches": self.branches, "tokens": self.tokens}
                self._state = empty(prompts, **sizes, vocabulary=logits.shape[-1])
            index, keys = np.full(rows, self.slots, np.int32), np.zeros((rows, self.branches), np.uint32)
            token_ids = np.full((rows, prompts.capacity), -1, np.int32)
            start = np.full(rows, writing.automaton.start, np.int32)
            for row, entry in enumerate(entries):
                index[row], keys[row] = entry.slot, entry.keys
                if begun_response(entry.prompt.text):
                    start[row] = writing.automaton.start_inside
                token_ids[row, : len(entry.prompt.token_ids)] = entry.prompt.token_ids
            alone = len(entries) + len(self.free) == self.slots
            # Where few take over what slots hold, the rest of the slots may still serve others.
            kept = len(entries) < self.slots and any(entry.shared for entry in entries)
            whole = (
                alone
                and not kept
                and rows == self.slots
                and [entry.slot for entry in entries] == list(range(len(entries)))
            )
            arguments = prompts, logits, index, token_ids, keys, start, writing.automaton, writing.settings
            self._state = engine.admit(self._state, *arguments, whole=whole)
        if whole:
            self.traces = [None] * self.slots
        for entry in entries:
            self.traces[entry.slot] = entry.trace
            self._unseen.add(entry.slot)

    def decode(self, writing: Writing, *, longest: int, most: int, enough: int) -> engine.Used:
        """Writes at most `most` tokens of every branch, fewer if a cache is full; see `engine.decode`. Does not wait.

        Args:
            longest: tokens of the longest branch that runs.
        """
        reach = self._reach(longest)
        steps = jnp.int32(min(most, reach - longest))
        arguments = writing.automaton, writing.settings, steps, jnp.int32(enough)
        with writing.in_use():
            self._state, used = engine.decode(writing.model, self._state, *arguments, reach=reach)
        return used

    def progress(self) -> tuple[Int[np.ndarray, "B G"], Int[np.ndarray, "B G"]]:
        """Waits for the device; why each branch has ended, or that it runs, and its length."""
        return fetch((self._state.branches.finish, self._state.branches.length))

    def sound(self, slot: int) -> bool:
        """Whether the keys and values that a slot holds are numbers; if not, its prompt leaves no trace.

        Waits for the device, once for each prompt.
        """
        if slot in self._unseen:
            self._unseen.remove(slot)
            finish, length = self.progress()
            if finish[slot, 0] == FAILED and length[slot, 0] == 0:  # not even its own next token was one
                self.traces[slot] = None
        return self.traces[slot] is not None

    def take(self, slots: Sequence[int]) -> list[Branches]:
        """What the branches of some slots have written, on the host: arrays `[G, …]` for each slot."""
        index = np.zeros(self.slots, np.int32)
        index[: len(slots)] = slots
        taken = fetch(pick(self._state.branches, index))
        return [jax.tree.map(lambda x, row=row: x[row], taken) for row in range(len(slots))]

    def stop(self, writing: Writing, which: Bool[np.ndarray, "B G"]) -> None:
        """Ends branches that run."""
        with writing.in_use():
            self._state = stop(self._state, which)

    def _reach(self, longest: int) -> int:
        """The first rung above `longest`: the whole cache, a quarter of it, a quarter of that, …"""
        rung = self.tokens
        while rung // 4 >= SMALLEST_REACH and rung // 4 > longest:
            rung //= 4
        return rung

    def _rows(self, count: int) -> int:
        """Rows for so many prompts: all slots, or a power of four for each shard. Every other number would compile
        programs."""
        rows = self.shards
        while rows < count:
            rows *= 4
        return self.slots if 2 * count > self.slots else min(rows, self.slots)

    def _prefill(
        self, writing: Writing, entries: Sequence[Entry], collated: Collated | None
    ) -> tuple[cache.PromptCache, Float[jax.Array, "r V"]]:
        prompts, shared = [entry.prompt for entry in entries], [entry.shared for entry in entries]
        ends = [len(prompt.token_ids) for prompt in prompts]
        if collated is not None:
            capacity = self._capacity(collated.inputs.token_ids.shape[1])
            return self._run(writing, Given(prompts, collated), None, capacity)
        capacity = self._capacity(bucket(max(ends), self._config.prompt_lengths))
        before, lengths, rows = None, self._config.prompt_lengths, self._rows(len(prompts))
        if any(shared):
            sources = np.zeros(rows, np.int32)
            sources[: len(entries)] = [entry.source for entry in entries]
            before, lengths = cache.copy_prompts(self._state.prompts, sources), None
        pieces = cut(shared, ends, capacity=capacity, most=self.piece, lengths=lengths)
        return self._run(writing, Batch(prompts, pieces, rows, self._pad), before, capacity)

    def _run(
        self, writing: Writing, batch: Batch, before: cache.PromptCache | None, capacity: int
    ) -> tuple[cache.PromptCache, Float[jax.Array, "r V"]]:
        """Takes a batch piece by piece through the model; the logits are those behind every prompt's last token."""
        model, embeddings, logits = writing.model, None, None
        dtype = None if self._config.cache_dtype == "model" else self._config.cache_dtype
        position = batch.padded([prompt.next_position for prompt in batch.prompts])
        if batch.features is not None:
            embeddings = cache.embed_vision(model, None, batch.features)
        elif (vision := batch.vision()) is not None:
            embeddings = cache.embed_vision(model, writing.place(vision))
        for piece in batch.pieces:
            arguments = writing.place(batch.inputs(piece)), batch.padded(piece.starts), position, embeddings
            before, new = cache.prefill(model, before, *arguments, capacity=capacity, dtype=dtype)
            if piece.ends.any():
                logits = new if logits is None else jnp.where(batch.padded(piece.ends)[:, None] > 0, new, logits)
        return before, logits

    def _capacity(self, needed: int) -> int:
        """Tokens that a prompt may have: the slots are widened where a longer one comes."""
        if self._state is None:
            return needed
        if needed > self._state.prompts.capacity:
            prompts = widen(self._state.prompts, capacity=needed)
            self._state = dataclasses.replace(self._state, prompts=prompts)
        return self._state.prompts.capacity
