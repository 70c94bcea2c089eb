"""Floating-point operations that the work of a step needs, and what share of the hardware's peak it got."""

from collections.abc import Sequence

import jax

from videoauto_jax.models.config import TextConfig

# Dense bfloat16 with float32 accumulation, without sparsity: vendors' data sheets.
_PEAK = {
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(device: jax.Device | None = None) -> float | None:
    """bfloat16 operations per second of one device at its best; None if it is not in the table."""
    return _PEAK.get((device or jax.devices()[0]).device_kind)


def group_forward_flops(config: TextConfig, prompts: Sequence[int], branches: Sequence[Sequence[int]]) -> float:
    """Operations of one forward pass of the decoder over groups, every prompt computed once, no padding counted.

    Multiply-add counts as two. Counted: projections, MLP (of experts those that a token uses), scores and weighted
    sums of causal attention, and the head on branch tokens. Not counted: tower, mergers, norms, embeddings.

    Args:
        prompts: tokens of each prompt.
        branches: tokens of its branches.
    """
    return _weight_flops(config, prompts, branches) + _attention_flops(config, prompts, branches)


def group_update_flops(
    config: TextConfig, prompts: Sequence[int], branches: Sequence[Sequence[int]], *, adapters: bool = False
) -> float:
    """Operations of a forward and a backward pass, counted as `group_forward_flops` counts; nothing for recomputation.

    A backward pass computes the gradient of both factors of every product: twice the forward pass. Where only adapters
    train, the weights' own gradient is not needed. The adapters themselves, a few per cent, are not counted.
    """
    weights, attention = _weight_flops(config, prompts, branches), _attention_flops(config, prompts, branches)
    return (2 if adapters else 3) * weights + 3 * attention


def utilisation(flops: float, seconds: float) -> float | None:
    """Model FLOPs utilisation over all devices of the job; None where the peak is not known."""
    peak = peak_flops()
    return None if peak is None else flops / (seconds * peak * jax.device_count())


def _weight_flops(config: TextConfig, prompts: Sequence[int], branches: Sequence[Sequence[int]]) -> float:
    """Products with weights in a forward pass."""
    written = sum(map(sum, branches))
    head = config.hidden_size * config.vocab_size * written
    return 2.0 * (_weights_per_token(config) * (sum(prompts) + written) + head)


def _attention_flops(config: TextConfig, prompts: Sequence[int], branches: Sequence[Sequence[int]]) -> float:
    """Scores and weighted sums in a forward pass."""
    pairs = 0.0
    for length, group in zip(prompts, branches):
        pairs += length * (length + 1) / 2 + sum(tokens * length + tokens * (tokens + 1) / 2 for tokens in group)
    return 4 * config.num_layers * config.num_heads * config.head_dim * pairs


def _weights_per_token(config: TextConfig) -> int:
    """Weights of the decoder's layers that one token is multiplied with."""
    width, experts = config.hidden_size, config.experts
    attention = width * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    if experts is None:
        mlp = 3 * width * config.intermediate_size
    else:
        mlp = width * experts.count + 3 * width * experts.intermediate_size * experts.chosen
    return config.num_layers * (attention + mlp)
