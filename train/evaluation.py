"""Held-out samples, answered greedily while training."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from videoauto_jax.data.annotations import Sample
from videoauto_jax.data.encoding import Encoded
from videoauto_jax.data.processor import Processor
from videoauto_jax.distributed import exchange, join, share, together
from videoauto_jax.errors import ConfigError
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.rewards import RewardPool
from videoauto_jax.sampling.sampler import Sampler, SamplingConfig
from videoauto_jax.train.recipe import GRPOConfig
from videoauto_jax.train.rollout import Graded, Item, grade_groups, score_share
from videoauto_jax.train.rollout_metrics import SCORE, confidence_metrics, plain_accuracy_2


def hold_out(samples: list[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to train on and samples to evaluate on, both in their order; a choice by seed.

    Samples about the same visual stay on the same side: what has been trained on is not held out.

    Raises:
        ConfigError: nothing would be left to train on.
    """
    if not count:
        return samples, []
    keys = [sample.media or sample.id for sample in samples]
    distinct = sorted(set(keys))
    random.Random(seed).shuffle(distinct)
    held, size, sizes = set(), 0, {}
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    for key in distinct:
        if size >= count:
            break
        held.add(key)
        size += sizes[key]
    kept = [sample for sample, key in zip(samples, keys) if key not in held]
    if not kept:
        fix = f"Lower it: there are {len(samples)} samples"
        raise ConfigError(f"{count} held-out samples leave none to train on", where="holdout.samples", fix=fix)
    return kept, [sample for sample, key in zip(samples, keys) if key in held][:count]


class Evaluation:
    """Answers held-out samples with the current weights, one greedy branch each.

    Args:
        samples: what to answer. One that cannot be encoded is left out, and counted in `eval/skipped`.
        model: any model of the right shapes.
        config: the recipe.
    """

    def __init__(
        self, samples: Sequence[Sample], model: QwenVL, processor: Processor, pool: RewardPool, config: GRPOConfig
    ):
        self.samples, self.processor, self.pool, self.config = samples, processor, pool, config
        sampling = SamplingConfig(
            mode="record",
            max_new_tokens=config.rollout.max_new_tokens,
            prompts=min(len(samples), config.prompts // config.updates),
            prompt_lengths=config.data.prompt_lengths,
            reuse_prefixes=False,
        )
        self.sampler = Sampler(model, processor, sampling)

    def __call__(self, model: QwenVL) -> dict[str, tuple[float, float]]:
        """Metrics `eval/…` as (sum, count) pairs."""
        self.sampler.model = model
        items: list[Item] = []
        answers = dict(self.sampler.stream(self._prompts(items)))
        answers = [answers[n] for n in range(len(items))]
        shares = together(lambda: score_share(self.pool, items, answers, self.config))
        graded = grade_groups(shares, items, answers, self.config)
        metrics = _metrics(graded, self.config.holdout.threshold) if graded else {SCORE: (0.0, 1.0)}
        return metrics | {"eval/skipped": (float(len(self.samples) - len(graded)), 1.0)}

    def _prompts(self, items: list[Item]) -> Iterator[Encoded]:
        """Prompts that could be encoded, noted in `items`; the next ones are decoded while others are answered.

        Every process decodes its share of them.
        """
        count = self.sampler.config.prompts
        batches = [self.samples[start : start + count] for start in range(0, len(self.samples), count)]
        with ThreadPoolExecutor(max(self.config.data.workers, 1)) as threads:
            encode = lambda batch: threads.map(self._encoded, share(batch))  # noqa: E731
            encoded = encode(batches[0])
            for batch, following in zip(batches, [*batches[1:], []]):
                found, encoded = join(exchange(list(encoded))), encode(following)
                for sample, prompt in zip(batch, found):
                    if prompt is not None:
                        items.append((len(items), sample, prompt))
                        yield prompt

    def _encoded(self, sample: Sample) -> Encoded | None:
        try:
            return self.processor.encode(sample.messages)
        except Exception:  # decoders raise anything; one damaged file must not end a run
            return None


def _metrics(graded: Sequence[Graded], threshold: float) -> dict[str, tuple[float, float]]:
    answers = [group.answers[0] for group in graded]
    rewards = [group.rewards[0] for group in graded]
    first = np.array([reward.accuracy_1 for reward in rewards])
    second = np.array([plain_accuracy_2(answer, reward) for answer, reward in zip(answers, rewards)])
    exits = np.array([answer.confidence >= threshold for answer in answers])
    count = float(len(graded))
    values = {
        "accuracy_1": first,
        "accuracy_2": second,
        "accuracy_auto": np.where(exits, first, second),
        "format": np.array([reward.format for reward in rewards]),
        "reward": np.array([group.totals[0] for group in graded]),
        "mean_length": np.array([len(answer.token_ids) for answer in answers]),
        "thinks": ~exits,
    }
    pairs = {name: (float(array.sum()), count) for name, array in values.items()} | confidence_metrics(answers)
    return {f"eval/{name}": pair for name, pair in pairs.items()}
