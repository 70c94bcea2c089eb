"""The mixture of experts of Qwen3-VL-MoE (HF `Qwen3VLMoeTextSparseMoeBlock`): every token sees a few of many MLPs.

Tokens are sorted by expert and go through a grouped matrix product, so that only chosen experts are computed and none
is dropped. Where the mesh has an `expert` axis each of its devices holds some experts: rows are gathered along it, each
device computes what its experts are asked for, and the sums are scattered back.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from videoauto_jax.kernels.grouped import grouped_matmul
from videoauto_jax.models.config import TextConfig
from videoauto_jax.models.layers import Projection
from videoauto_jax.models.partition import batch_axes, dividing_axis


class ExpertKernel(nnx.Module):
    """One matrix (or several of one shape) per expert: `[E, D, F]` or `[E, c, D, F]`."""

    def __init__(self, shape: tuple[int, ...], *, param_dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.normal(shape[-2] ** -0.5)
        self.kernel = nnx.Param(init(rngs.params(), shape, param_dtype))


class MixtureOfExperts(nnx.Module):
    """SwiGLU experts and their router."""

    def __init__(self, config: TextConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        experts, width = config.experts, config.hidden_size
        self.chosen, self.dtype, count, hidden = experts.chosen, dtype, experts.count, experts.intermediate_size
        options = {"param_dtype": param_dtype, "rngs": rngs}
        self.router = Projection("...d,de->...e", (width, count), dtype=dtype, **options)
        gate_up = ExpertKernel((count, 2, width, hidden), **options)
        self.experts = nnx.Dict(gate_up=gate_up, down=ExpertKernel((count, hidden, width), **options))

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        probabilities = jax.nn.softmax(self.router(x).astype(jnp.float32), axis=-1)
        weights, chosen = jax.lax.top_k(probabilities, self.chosen)
        weights = (weights / jnp.sum(weights, axis=-1, keepdims=True)).astype(x.dtype)
        gate_up, down = (self.experts[name].kernel[...].astype(self.dtype) for name in ("gate_up", "down"))
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return _apply(x, weights, chosen, gate_up, down)
        rows = batch_axes(mesh, len(x))
        expert, tensor = dividing_axis(mesh, "expert", len(down)), dividing_axis(mesh, "tensor", down.shape[1])
        body = partial(_on_device, gather=expert if expert in rows else None, expert=expert, tensor=tensor)
        by_rows = P(rows or None, dividing_axis(mesh, "context", x.shape[1]))
        kernels = (P(expert, None, None, tensor), P(expert, tensor))
        return jax.shard_map(body, in_specs=(by_rows, by_rows, by_rows, *kernels), out_specs=by_rows, check_vma=False)(
            x, weights, chosen, gate_up, down
        )


def _on_device(
    x: Array, weights: Array, chosen: Array, gate_up: Array, down: Array,
    *, gather: str | None, expert: str | None, tensor: str | None,
) -> Array:  # fmt: skip
    """One device's experts, or its slice of their width, and the sum over devices."""
    if gather:
        x, weights, chosen = (jax.lax.all_gather(part, gather, tiled=True) for part in (x, weights, chosen))
    first = jax.lax.axis_index(expert) * len(down) if expert else 0
    out = _apply(x, weights, chosen - first, gate_up, down)
    if tensor:
        out = jax.lax.psum(out, tensor)
    if gather:
        return jax.lax.psum_scatter(out, gather, tiled=True)
    return jax.lax.psum(out, expert) if expert else out


def _apply(
    x: Float[Array, "B T D"],
    weights: Float[Array, "B T k"],
    chosen: Int[Array, "B T k"],
    gate_up: Float[Array, "E 2 D F"],
    down: Float[Array, "E F D"],
) -> Float[Array, "B T D"]:
    """The weighted outputs of those chosen experts that are given; the others (numbers outside 0..E-1) add nothing."""
    count, width = len(down), x.shape[-1]
    choice = chosen.reshape(-1)
    choice = jnp.where((choice >= 0) & (choice < count), choice, count)
    order = jnp.argsort(choice, stable=True)
    sizes = jnp.bincount(choice, length=count + 1)[:count].astype(jnp.int32)
    sorted_x = x.reshape(-1, width)[order // chosen.shape[-1]]
    gate, up = (grouped_matmul(sorted_x, gate_up[:, part], sizes) for part in (0, 1))
    out = grouped_matmul(jax.nn.silu(gate) * up, down, sizes)
    out = out[jnp.argsort(order)].reshape(*chosen.shape, width)
    return jnp.einsum("btkd,btk->btd", out, weights)
