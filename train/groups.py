"""Group rows: a prompt once, its branches packed behind it.

A row is `[prompt | branch 1 | branch 2 | …]`. The prompt's part has length `P` (a bucket), the branches' part length
`X` (a bucket); segments keep branches apart (`kernels.attention.group_attention`). Supervised and reinforcement
learning, old, reference and policy passes all use these rows.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videoauto_jax.data.collate import bucket
from videoauto_jax.models.inputs import ModelInputs
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.models.vision import VisionFeatures
from videoauto_jax.train.log_probs import selective_log_softmax


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
) -> GroupBatch:
    """Packs branches behind their prompts, on the host.

    Args:
        prompts: right-padded prompts, `[B, P]`, NumPy.
        next_positions: M-RoPE position of each prompt's next token.
        branches: per prompt its branches' tokens.
        bound: `R`, at least the longest branch.
        count: `G`, at least the most branches of a prompt; by default exactly that.
        lengths: ladder of `X`; `data.collate.bucket`'s own without one.
    """
    rows = [_row(prompts, b, next_positions[b], branches[b]) for b in range(len(branches))]
    width = bucket(max(len(row["token_ids"]) for row in rows), lengths)
    packed = {name: np.stack([np.pad(row[name], (0, width - len(row[name]))) for row in rows]) for name in rows[0]}
    count = count or max(len(group) for group in branches)
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
    """float32 log-probabilities of every branch token, 0 where there is none; `[T, V]` logits never exist.

    Args:
        model: the model.
        batch: group rows.
        features: the frozen tower's features of the batch, computed earlier.
        temperature: divides the logits, as in the rollout (upstream §4.4).
        remat: recompute activations in the backward pass.
        chunk: branch slots whose logits exist at once.
    """
    hidden = model.hidden(
        batch.inputs, features, prompt_length=batch.prompt_length, branch_bound=batch.branch_bound, remat=remat
    )
    hidden = jnp.take_along_axis(hidden, batch.source[..., None], axis=1)

    @jax.checkpoint
    def score(piece: tuple[Array, Array]) -> Float[Array, "B C"]:
        states, targets = piece
        return selective_log_softmax(model.logits(states), targets, temperature=temperature)

    scores = _by_chunks(score, (hidden, batch.targets), chunk)
    rows = len(scores)
    spread = jnp.take_along_axis(scores, batch.place.reshape(rows, -1), axis=1).reshape(batch.place.shape)
    return jnp.where(batch.mask, spread, 0.0)


def _by_chunks(score: Callable, arrays: tuple[Array, ...], chunk: int) -> Float[Array, "B X"]:
    """Applies `score` to slices of at most `chunk` slots, one after the other."""
    rows, slots = arrays[0].shape[:2]
    size = min(chunk, slots)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, 0), (0, -slots % size)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(padded.reshape(rows, -1, size, *x.shape[2:]), 1, 0)

    scores = jax.lax.map(score, tuple(map(split, arrays)))
    return jnp.moveaxis(scores, 0, 1).reshape(rows, -1)[:, :slots]
