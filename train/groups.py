"""Group rows: a prompt once, its branches packed behind it.

A row is `[prompt | branch 1 | branch 2 | …]`. The prompt's part has length `P` (a bucket), the branches' part length
`X` (a bucket); segments keep branches apart (`kernels.attention.group_attention`). Supervised and reinforcement
learning, old, reference and policy passes all use these rows.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videoauto_jax.data.collate import bucket
from videoauto_jax.kernels.sharded import context_axis, context_devices
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.partition import constrain
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.models.vision import VisionFeatures
from videoauto_jax.train.log_probs import selective_log_softmax, softmax_entropy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupBatch:
    """`B` group rows of up to `G` branches of up to `R` tokens.

    Attributes:
        inputs: the rows, `T = P + X`.
        source: slot of the row whose hidden state predicts the token in each branch slot.
        targets: the tokens in the branch slots.
        place: branch slot of each branch's tokens (0 where `mask` is false).
        mask: which entries of `[B, G, R]` are tokens.
        prompt_length: static `P`.
        branch_bound: static bound on the length of a branch, `R`.
    """

    inputs: ModelInputs
    source: Int[Array, "B X"]
    targets: Int[Array, "B X"]
    place: Int[Array, "B G R"]
    mask: Bool[Array, "B G R"]
    prompt_length: int = dataclasses.field(metadata={"static": True})
    branch_bound: int = dataclasses.field(metadata={"static": True})


def pack_groups(
    prompts: ModelInputs,
    next_positions: Sequence[int],
    branches: Sequence[Sequence[Int[np.ndarray, "R"]]],
    *,
    bound: int,
    count: int | None = None,
    lengths: Sequence[int] | None = None,
    subgroups: int = 1,
) -> GroupBatch:
    """Packs branches behind their prompts, on the host.

    Args:
        prompts: right-padded prompts, `[B, P]`, NumPy.
        next_positions: M-RoPE position of each prompt's next token.
        branches: per prompt its branches' tokens.
        bound: `R`, at least the longest branch.
        count: `G`, at least the most branches of a prompt; by default exactly that.
        lengths: ladder of `X`; `data.collate.bucket`'s own without one.
        subgroups: rows that each group is split over, for meshes with more data shards than a batch has prompts. A
            prompt then stands in so many consecutive rows, each with its share of the branches, in their order.
    """
    count = count or max(len(group) for group in branches)
    if subgroups > 1:
        prompts, next_positions = _repeated(prompts, subgroups), np.repeat(next_positions, subgroups)
        count //= subgroups
        branches = [group[start : start + count] for group in branches for start in range(0, subgroups * count, count)]
    rows = [_row(prompts, b, next_positions[b], branches[b]) for b in range(len(branches))]
    width = bucket(max(len(row["token_ids"]) for row in rows), lengths)
    packed = {name: np.stack([np.pad(row[name], (0, width - len(row[name]))) for row in rows]) for name in rows[0]}
    place, mask = _places(branches, count, bound)
    inputs = ModelInputs(
        token_ids=np.concatenate([prompts.token_ids, packed["token_ids"]], 1),
        positions=np.concatenate([prompts.positions, np.stack([packed["positions"]] * 3)], 2),
        segment_ids=np.concatenate([prompts.segment_ids, packed["segments"]], 1),
        vision_index=np.concatenate([prompts.vision_index, np.full_like(packed["token_ids"], -1)], 1),
        vision=prompts.vision,
    )
    length = prompts.token_ids.shape[1]
    return GroupBatch(inputs, packed["source"], packed["token_ids"], place, mask, length, bound)


def _repeated(prompts: ModelInputs, times: int) -> ModelInputs:
    """Every row so many times; packed patches stay what they are, the rows' indices into them too."""
    again = lambda array, axis=0: np.repeat(array, times, axis)  # noqa: E731
    token_ids, positions = again(prompts.token_ids), again(prompts.positions, 1)
    return ModelInputs(token_ids, positions, again(prompts.segment_ids), again(prompts.vision_index), prompts.vision)


def pack_branches_like(batch: GroupBatch, values: Sequence[Float[np.ndarray, "R"]]) -> Float[np.ndarray, "B G R"]:
    """Numbers per branch token, as `batch.mask` has them and 0 elsewhere, from one array per branch in their order."""
    padded = np.zeros(batch.mask.shape, np.float32)
    padded[batch.mask] = np.concatenate(values)
    return padded


def microbatches(batch: GroupBatch, count: int) -> GroupBatch:
    """Rows dealt out in turn to `count` batches along a new first axis, to be scanned; none holds patches."""
    deal = partial(deal_rows, count=count)
    inputs = batch.inputs
    positions = deal_rows(inputs.positions, count, axis=1)
    dealt = ModelInputs(deal(inputs.token_ids), positions, deal(inputs.segment_ids), deal(inputs.vision_index), None)
    arrays = map(deal, (batch.source, batch.targets, batch.place, batch.mask))
    return GroupBatch(dealt, *arrays, batch.prompt_length, batch.branch_bound)


def deal_rows(array: Array, count: int, axis: int = 0) -> Array:
    """Splits the row axis into rows of `count` batches; the batch axis becomes the first.

    In turn rather than in blocks: where the rows are split over devices, each keeps its share of every batch.
    """
    size = array.shape[axis]
    return jnp.moveaxis(array.reshape(*array.shape[:axis], size // count, count, *array.shape[axis + 1 :]), axis + 1, 0)


def _row(prompts: ModelInputs, row: int, position: int, branches: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """One row's branch part, unpadded. A branch's first token is predicted by the prompt's last slot."""
    width = prompts.token_ids.shape[1]
    last = int(np.sum(prompts.segment_ids[row] > 0)) - 1
    lengths = [len(branch) for branch in branches]
    starts = np.cumsum([0, *lengths])[:-1]
    sources = [np.r_[last, width + start + np.arange(length)][:length] for start, length in zip(starts, lengths)]
    return {
        "token_ids": np.concatenate(branches).astype(np.int32),
        "positions": np.concatenate([position + np.arange(length) for length in lengths]).astype(np.int32),
        "segments": np.repeat(np.arange(len(branches)) + 2, lengths).astype(np.int32),
        "source": np.concatenate(sources).astype(np.int32),
    }


def _places(branches: Sequence[Sequence[np.ndarray]], count: int, bound: int) -> tuple[np.ndarray, np.ndarray]:
    place = np.zeros((len(branches), count, bound), np.int32)
    mask = np.zeros(place.shape, bool)
    for b, group in enumerate(branches):
        start = 0
        for g, branch in enumerate(group):
            place[b, g, : len(branch)] = start + np.arange(len(branch))
            mask[b, g, : len(branch)] = True
            start += len(branch)
    return place, mask


def branch_log_probs(
    model: QwenVL,
    batch: GroupBatch,
    features: VisionFeatures | None = None,
    *,
    temperature: float = 1.0,
    remat: bool = False,
    chunk: int = 256,
) -> Float[Array, "B G R"]:
    """float32 log-probabilities of every branch token, see `branch_scores`."""
    return branch_scores(model, batch, features, temperature=temperature, remat=remat, chunk=chunk)[0]


def branch_scores(
    model: QwenVL,
    batch: GroupBatch,
    features: VisionFeatures | None = None,
    *,
    temperature: float = 1.0,
    remat: bool = False,
    chunk: int = 256,
    entropies: bool = False,
) -> tuple[Float[Array, "B G R"], Float[Array, "B G R"] | None]:
    """float32 log-probabilities of every branch token, 0 where there is none; `[T, V]` logits never exist.

    Args:
        model: the model.
        batch: group rows.
        features: the frozen tower's features of the batch, computed earlier.
        temperature: divides the logits, as in the rollout (upstream §4.4).
        remat: recompute activations in the backward pass.
        chunk: branch slots whose logits exist at once on a device.
        entropies: give the entropy of the distribution at every token too; no gradient flows through it.
    """
    hidden = model.hidden(
        batch.inputs, features, prompt_length=batch.prompt_length, branch_bound=batch.branch_bound, remat=remat
    )
    hidden = jnp.take_along_axis(hidden, batch.source[..., None], axis=1)

    @jax.checkpoint
    def score(piece: tuple[Array, Array]) -> tuple[Float[Array, "B C"], ...]:
        states, targets = piece
        logits = model.logits(constrain(states, token_axis=context_axis(states.shape[1])))
        log_probs = selective_log_softmax(logits, targets, temperature=temperature)
        return (log_probs, softmax_entropy(logits, temperature=temperature)) if entropies else (log_probs,)

    def spread(scores: Float[Array, "B X"]) -> Float[Array, "B G R"]:
        taken = jnp.take_along_axis(scores, batch.place.reshape(len(scores), -1), axis=1)
        return jnp.where(batch.mask, taken.reshape(batch.place.shape), 0.0)

    scores = [spread(values) for values in _by_chunks(score, (hidden, batch.targets), chunk * context_devices())]
    return scores[0], scores[1] if entropies else None


def _by_chunks(score: Callable, arrays: tuple[Array, ...], chunk: int) -> tuple[Float[Array, "B X"], ...]:
    """Applies `score` to slices of at most `chunk` slots, one after the other."""
    rows, slots = arrays[0].shape[:2]
    size = min(chunk, slots)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, -slots % size)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(rows, -1, size, *x.shape[2:]), 1, 0)

    scores = jax.lax.map(score, tuple(map(split, arrays)))
    return tuple(jnp.moveaxis(values, 0, 1).reshape(rows, -1)[:, :slots] for values in scores)
