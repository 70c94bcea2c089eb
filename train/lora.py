"""Low-rank adapters (LoRA, arXiv 2106.09685): y = x W + scale · (x A) B with frozen W, and how they are exported."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from safetensors.numpy import save_file

from videoauto_jax.distributed import is_main
from videoauto_jax.errors import ConfigError, ModelError
from videoauto_jax.files import write_json
from videoauto_jax.models.layers import Projection
from videoauto_jax.models.lazy import LazyParameter
from videoauto_jax.models.placing import fetch
from videoauto_jax.models.qwen_vl import QwenVL
from videoauto_jax.train.parameters import path_name

Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
_ROOMS = dict.fromkeys(("q", "k", "v", "o"), "attention") | dict.fromkeys(("gate", "up", "down"), "mlp")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which projections of the decoder get adapters.

    Attributes:
        rank: width of the bottleneck.
        alpha: the adapter's output is scaled by alpha / rank.
        targets: projections of every decoder layer. Those of experts cannot be targets.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[Target, ...] = ("q", "k", "v", "o", "gate", "up", "down")

    def __post_init__(self):
        if self.rank < 1 or not self.alpha > 0 or not self.targets:
            shown = f"rank={self.rank}, alpha={self.alpha}, targets={list(self.targets)}"
            raise ConfigError(f"lora: {shown}", where="lora", fix="rank and alpha are above 0, and targets not empty")

    @property
    def scale(self) -> float:
        """Factor of the adapter's output."""
        return self.alpha / self.rank


class Adapter(nnx.Module):
    """The low-rank part of one projection, or of the same projection of all stacked layers.

    Attributes:
        a: from the projection's inputs to the bottleneck, float32.
        b: from the bottleneck to its outputs; 0 at first, so that a fresh adapter changes nothing.
    """

    def __init__(self, a: Array, b: Array, equations: tuple[str, str], scale: float, dtype: jnp.dtype):
        self.a, self.b = nnx.Param(a), nnx.Param(b)
        self.equations, self.scale, self.dtype = equations, scale, dtype

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        down, up = self.equations
        narrow = jnp.einsum(down, x.astype(self.dtype), self.a[...].astype(self.dtype))
        return self.scale * jnp.einsum(up, narrow, self.b[...].astype(self.dtype))


def is_adapter(path: tuple, value: object = None) -> bool:
    """NNX filter: parameters of adapters."""
    del value
    return "/adapter/" in path_name(path)


def attach_adapters(model: QwenVL, config: LoraConfig, seed: int) -> None:
    """Gives the targeted projections of a model fresh adapters, in place.

    `a` is uniform in ±1 / sqrt(fan-in) as in the peft library, `b` is 0.

    Raises:
        ModelError: a target is a mixture of experts.
    """
    layers, key = model.text.layers, jax.random.key(seed)
    for number, target in enumerate(config.targets):
        projection = _projection(layers, target)
        kernel = projection.kernel.get_value()  # of an abstract model it has a shape and nothing to index
        inputs = len(_axes(projection)[0])
        shape_a = (*kernel.shape[: 1 + inputs], config.rank)
        shape_b = (kernel.shape[0], config.rank, *kernel.shape[1 + inputs :])
        bound = math.prod(kernel.shape[1 : 1 + inputs]) ** -0.5
        a = jax.random.uniform(jax.random.fold_in(key, number), shape_a, jnp.float32, -bound, bound)
        b = jnp.zeros(shape_b, jnp.float32)
        if isinstance(kernel.sharding, NamedSharding):
            everywhere = NamedSharding(kernel.sharding.mesh, PartitionSpec())
            a, b = jax.device_put((a, b), everywhere)
        projection.adapter = Adapter(a, b, _equations(projection), config.scale, jnp.dtype(model.text.dtype))


def merge_adapters(model: QwenVL, config: LoraConfig) -> None:
    """Adds the adapters of a model to its weights and removes them, in place.

    Sums are float32 and then have the weights' dtype, as `merge_and_unload` of peft does it.
    """
    for target in config.targets:
        projection = _projection(model.text.layers, target)
        projection.kernel.set_value(_merged(projection))
        del projection.adapter


def merged_parameters(
    model: QwenVL, config: LoraConfig, parameters: Mapping[str, LazyParameter]
) -> dict[str, LazyParameter]:
    """What `merge_adapters` computes, one layer at a time when it is asked for.

    Args:
        model: a model of which the adapters are read and nothing else.
        config: where its adapters are.
        parameters: the weights beside them, by path.
    """
    merged = dict(parameters)
    for target in config.targets:
        path = f"text/layers/{_ROOMS[target]}/{target}/kernel"
        read = partial(_merged_layer, _projection(model.text.layers, target).adapter, parameters[path])
        merged[path] = dataclasses.replace(parameters[path], read=read)
    return merged


def save_adapters(model: QwenVL, config: LoraConfig, folder: Path, *, base: str) -> None:
    """Writes the adapters of a model as a folder that the peft library loads onto HF's model of `base`.

    In a job of several processes all call it, and the main process writes.
    """
    tensors = peft_tensors(model, config)
    if not is_main():
        return
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", peft_config(config, base))


def peft_tensors(model: QwenVL, config: LoraConfig) -> dict[str, np.ndarray]:
    """The adapters under the names of the peft library, for HF's module names, float32.

    `lora_A.weight` is `[rank, inputs]`, `lora_B.weight` `[outputs, rank]`.
    """
    tensors = {}
    for target in config.targets:
        adapter, room = _projection(model.text.layers, target).adapter, _ROOMS[target]
        a, b = (np.asarray(fetch(param[...]), np.float32) for param in (adapter.a, adapter.b))
        for layer in range(len(a)):
            module = "self_attn" if room == "attention" else room
            name = f"base_model.model.model.language_model.layers.{layer}.{module}.{target}_proj"
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[layer].reshape(-1, config.rank).T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b[layer].reshape(config.rank, -1).T)
    return tensors


def peft_config(config: LoraConfig, base: str) -> dict:
    """The fields of `adapter_config.json`."""
    names = "|".join(f"{target}_proj" for target in config.targets)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        # A pattern rather than names: the vision tower of Qwen2.5-VL has modules of the same names.
        "target_modules": rf".*language_model\.layers\..*\.({names})",
    }


def _projection(layers: nnx.Module, target: Target) -> Projection:
    found = getattr(getattr(layers, _ROOMS[target]), target, None)
    if found is None:
        fix = "Choose among q, k, v, o"
        raise ModelError(f"{target} of a mixture of experts cannot have an adapter", where="lora.targets", fix=fix)
    return found


def _axes(projection: Projection) -> tuple[str, str]:
    """Letters of the kernel's input and output axes."""
    operands, result = projection.einsum_str.replace("...", "").split("->")
    inputs, kernel = operands.split(",")
    return inputs, "".join(letter for letter in kernel if letter in result)


def _equations(projection: Projection) -> tuple[str, str]:
    inputs, outputs = _axes(projection)
    return f"...{inputs},{inputs}r->...r", f"...r,r{outputs}->...{outputs}"


@jax.jit
def _sum(kernel: Array, a: Array, b: Array, scale: float) -> Array:
    delta = jnp.einsum("lir,lro->lio", a.reshape(len(a), -1, a.shape[-1]), b.reshape(*b.shape[:2], -1))
    return (kernel.astype(jnp.float32) + scale * delta.reshape(kernel.shape)).astype(kernel.dtype)


def _merged_layer(adapter: Adapter, kernel: LazyParameter, layer: int) -> np.ndarray:
    here, weights = slice(layer, layer + 1), kernel.read(layer).astype(kernel.dtype)
    return np.asarray(_sum(weights[None], adapter.a[here], adapter.b[here], adapter.scale))[0]


def _merged(projection: Projection) -> Array:
    adapter = projection.adapter
    return _sum(projection.kernel[...], adapter.a[...], adapter.b[...], adapter.scale)
