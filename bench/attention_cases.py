"""What is measured: attention as the two published models meet it, from a prompt of 4k tokens to one of 128k."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from videoauto_jax.kernels.attention import DecodeCache, attend, decode_partial
from videoauto_jax.kernels.mask import Mask, packed
from videoauto_jax.kernels.quantized import Quantized

BRANCHES, SLOTS = 16, 1024


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape of one operation.

    Attributes:
        name: unique.
        operation: "attend" or "decode".
        heads, kv_heads, size: of the layer.
        length: tokens of the row, or of the prompt.
        documents: lengths of the row's segments, repeated to its end; () is one document.
        causal: or full.
        backward: whether gradients are timed too.
        cache: dtype of the prompt's cache and of the branches'.
        layers: of a decoding step, one after the other as the sampler runs them: one alone would be over before the
            next is launched, and would find its keys in the L2 cache.
    """

    name: str
    operation: str
    heads: int
    kv_heads: int
    size: int
    length: int
    documents: tuple[int, ...] = ()
    causal: bool = True
    backward: bool = True
    cache: str = "bfloat16"
    layers: int = 1

    def mask(self) -> Mask:
        """The mask of an `attend` case."""
        ids = np.searchsorted(self.ends(), np.arange(self.length), side="right").astype(np.int32)[None] + 1
        bound = max(self.documents) if self.documents and not self.causal else None
        return packed(jnp.asarray(ids), causal=self.causal, bound=bound, aligned=not self.documents)

    def ends(self) -> np.ndarray:
        """Where each document ends."""
        runs = self.documents or (self.length,)
        return np.minimum(np.cumsum(np.resize(runs, -(-self.length // min(runs)))), self.length)

    def shapes(self) -> tuple:
        """Shapes of the arguments that `function` takes."""
        array = lambda *shape, dtype="bfloat16": jax.ShapeDtypeStruct((1, *shape), dtype)  # noqa: E731
        if self.operation == "attend":
            kv = array(self.length, self.kv_heads, self.size)
            return array(self.length, self.heads, self.size), kv, kv
        array = lambda *shape, dtype="bfloat16": jax.ShapeDtypeStruct((self.layers, 1, *shape), dtype)  # noqa: E731
        keys = [(self.length, self.kv_heads), (BRANCHES, SLOTS, self.kv_heads)]
        cache, own = (array(*shape, self.size, dtype=self.cache) for shape in keys)
        if self.cache != "bfloat16":
            cache, own = (Quantized(x, array(*shape, dtype="float32")) for x, shape in zip((cache, own), keys))
        return jax.ShapeDtypeStruct((1, BRANCHES, self.heads, self.size), "bfloat16"), cache, cache, own, own

    def function(self, backend: str):
        """What is compiled and timed: the output, and the gradients of all operands where they are asked for."""
        if self.operation == "decode":
            return lambda *operands: self.decode(*operands, backend=backend)
        return lambda *qkv: attend(*qkv, self.mask(), backend=backend)[0]

    def decode(self, q, k, v, own_k, own_v, *, backend: str):
        """All layers of a decoding step, each layer's output the next one's queries."""
        there, lengths = jnp.ones((1, self.length), jnp.int32), jnp.full((1, BRANCHES), SLOTS)
        cache = DecodeCache(k, v, there, own_k, own_v, lengths)
        step = lambda q, layer: (decode_partial(q, cache, layer, backend=backend)[0], None)  # noqa: E731
        return jax.lax.scan(step, q, jnp.arange(self.layers))[0]

    def gradient(self, backend: str):
        """The same with gradients: output, and those of q, k and v."""

        def run(*qkv):
            out, vjp = jax.vjp(self.function(backend), *qkv)
            return out, *vjp(qkv[0])

        return run

    @property
    def kernel(self) -> tuple:
        """What decides which kernel is compiled, and not only how long it runs."""
        return self.operation, self.heads, self.size, bool(self.documents), self.causal, self.cache

    @property
    def flops(self) -> float:
        """Useful multiplications and additions of the forward pass; the backward pass has 2.5 times as many."""
        if self.operation == "decode":
            return 4.0 * self.layers * BRANCHES * self.heads * self.size * (self.length + SLOTS)
        runs = np.diff(self.ends(), prepend=0).astype(float)
        pairs = np.sum(runs * (runs + 1) / 2 if self.causal else runs**2)
        return 4.0 * self.heads * self.size * float(pairs)

    @property
    def bytes(self) -> float:
        """Of keys and values that a decoding step must read."""
        width = 2 if self.cache == "bfloat16" else 1 + 4 / self.size
        return 2.0 * self.layers * self.kv_heads * self.size * (self.length + BRANCHES * SLOTS) * width


def cases() -> list[Case]:
    """All cases, most telling first: a run that reaches its limit of time drops the last."""
    models = {"7b": (28, 4, 128), "8b": (32, 8, 128)}

    def causal(*thousands: int) -> list[Case]:
        return [
            Case(f"{m}-causal-{n}k", "attend", *models[m], n * 1024, backward=n <= 64)
            for n in thousands
            for m in models
        ]

    def decode(cache: str, *thousands: int) -> list[Case]:
        return [
            Case(f"{m}-decode-{n}k-{cache}", "decode", *models[m], n * 1024, backward=False, cache=cache, layers=8)
            for n in thousands for m in models
        ]  # fmt: skip

    def vision(name: str, patches: int, *sizes: int) -> list[Case]:
        return [Case(f"{name}-{size}", "attend", 16, 16, size, 16384, (patches,), causal=False) for size in sizes]

    packed_rows = [Case(f"{m}-packed-32k", "attend", *models[m], 32768, (1500, 4000, 700, 2400)) for m in models]
    first = causal(16, 32) + packed_rows + decode("bfloat16", 64, 128, 16) + decode("float8_e4m3fn", 64, 128, 16)
    then = vision("frames", 1024, 80, 72) + causal(8, 64, 128, 4) + decode("int8", 64, 128, 16)
    return first + then + vision("windows", 64, 80, 72) + vision("frames", 1024, 64, 96)


def small(case: Case) -> Case:
    """The same kernels on a row short enough to check against float32 reference attention."""
    runs = tuple(max(1, n // 8) for n in case.documents)
    return dataclasses.replace(
        case, name=f"{case.name}-small", length=min(case.length, 4096) - 128, documents=runs, layers=1
    )
