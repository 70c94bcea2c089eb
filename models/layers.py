"""Building blocks shared by the decoder and the vision towers."""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

Module = TypeVar("Module", bound=nnx.Module)

EMBED_INIT = nnx.initializers.normal(0.02)


class Projection(nnx.Einsum):
    """A linear map whose kernel keeps its meaningful axes (`[D, N, H]` rather than `[D, N * H]`).

    A fresh kernel has variance 1 / fan-in, which models far narrower than the released ones need to learn at all.
    """

    def __init__(
        self,
        equation: str,
        kernel_shape: tuple[int, ...],
        *,
        bias_shape: tuple[int, ...] | None = None,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        operands, result = equation.replace("...", "").split("->")
        fan_in = math.prod(size for axis, size in zip(operands.split(",")[1], kernel_shape) if axis not in result)
        init = nnx.initializers.normal(fan_in**-0.5)
        super().__init__(
            equation,
            kernel_shape,
            bias_shape,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=init,
            einsum_op=_einsum_op,
            rngs=rngs,
        )

    def __call__(self, x: Array) -> Array:
        """The map, and what an adapter adds to it where one has been attached (`self.adapter`)."""
        y, adapter = super().__call__(x), getattr(self, "adapter", None)
        return y if adapter is None else y + adapter(x)


def _einsum_op(equation: str, x: Array, kernel: Array, **unset) -> Array:
    """What `nnx.Einsum` calls; its options for precision and sharding are never set here."""
    del unset
    return _project(equation, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _project(equation: str, x: Array, kernel: Array) -> Array:
    return jnp.einsum(equation, x, kernel)


def _project_forward(equation: str, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.einsum(equation, x, kernel), (x, kernel)


def _project_backward(equation: str, kept: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    """As JAX derives it, but for the order of the operands of the kernel's gradient: the smaller one comes first.

    XLA on CPUs writes the first one out transposed, together with what it fuses into that, which for the gradient of an
    MLP's hidden units takes longer than the product.
    """
    x, kernel = kept
    operands, result = equation.split("->")
    inner, weight = operands.split(",")
    (first, narrow), (second, wide) = sorted(((inner, x), (result, d_out)), key=lambda side: side[1].size)
    d_kernel = jnp.einsum(f"{first},{second}->{weight}".replace("...", "t"), _flat(first, narrow), _flat(second, wide))
    return jnp.einsum(f"{result},{weight}->{inner}", d_out, kernel), d_kernel


def _flat(axes: str, x: Array) -> Array:
    """The dimensions that `...` stands for as one."""
    return x.reshape(-1, *x.shape[x.ndim - len(axes) + 3 :]) if axes.startswith("...") else x


_project.defvjp(_project_forward, _project_backward)


def rms_norm(size: int, eps: float, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """Root-mean-square norm over the last axis, statistics in float32."""
    return nnx.RMSNorm(size, epsilon=eps, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def layer_norm(size: int, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm with HF's vision epsilon; the two-pass variance is the one that matches to 1e-5."""
    return nnx.LayerNorm(size, epsilon=1e-6, dtype=dtype, param_dtype=param_dtype, use_fast_variance=False, rngs=rngs)


def stack(make: Callable[[nnx.Rngs], Module], count: int, rngs: nnx.Rngs) -> Module:
    """`count` modules of one shape as one module whose parameters have a leading layer axis."""
    return nnx.vmap(make, in_axes=0, out_axes=0, axis_size=count)(rngs.fork(split=count))
