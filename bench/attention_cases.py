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
        cache: dtype of the prompt's cache.
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

    def mask(self) -> Mask:
        """The mask of an `attend` case."""
        runs = self.documents or (self.length,)
        ids = np.repeat(np.arange(self.length) + 1, np.resize(runs, self.length))[: self.length][None].astype(np.int32)
        bound = max(runs) if self.documents and not self.causal else None
        return packed(jnp.asarray(ids), causal=self.causal, bound=bound, aligned=not self.documents)

    def shapes(self) -> tuple:
        """Shapes of the arguments that `function` takes."""
        array = lambda *shape, dtype="bfloat16": jax.ShapeDtypeStruct((1, *shape), dtype)  # noqa: E731
        if self.operation == "attend":
            kv = array(self.length, self.kv_heads, self.size)
            return array(self.length, self.heads, self.size), kv, kv
        cache = array(1, self.length, self.kv_heads, self.size, dtype=self.cache)
        if self.cache != "bfloat16":
            cache = Quantized(cache, array(1, self.length, self.kv_heads, dtype="float32"))
        own = array(1, BRANCHES, SLOTS, self.kv_heads, self.size)
        return array(BRANCHES, self.heads, self.size), cache, cache, own, own

    def function(self, backend: str):
        """What is compiled and timed: the output, and the gradients of all operands where they are asked for."""
        if self.operation == "decode":
            there, lengths = jnp.ones((1, self.length), jnp.int32), jnp.full((1, BRANCHES), SLOTS)
            caches = lambda k, v, *own: DecodeCache(k, v, there, *own, lengths)  # noqa: E731
            return lambda q, *kv: decode_partial(q, caches(*kv), 0, backend=backend)[0]
        return lambda *qkv: attend(*qkv, self.mask(), backend=backend)[0]

    def gradient(self, backend: str):
        """The same with gradients: output, and those of q, k and v."""

        def run(*qkv):
            out, vjp = jax.vjp(self.function(backend), *qkv)
            return out, *vjp(qkv[0])

        return run

    @property
    def flops(self) -> float:
        """Useful multiplications and additions of the forward pass; the backward pass has 2.5 times as many."""
        if self.operation == "decode":
            return 4.0 * BRANCHES * self.heads * self.size * (self.length + SLOTS)
        ends = np.minimum(np.cumsum(np.resize(self.documents or (self.length,), self.length)), self.length)
        runs = np.diff(ends, prepend=0).astype(float)
        pairs = np.sum(runs * (runs + 1) / 2 if self.causal else runs**2)
        return 4.0 * self.heads * self.size * float(pairs)

    @property
    def bytes(self) -> float:
        """Of keys and values that a decoding step must read."""
        width = 2 if self.cache == "bfloat16" else 1 + 4 / self.size
        return 2.0 * self.kv_heads * self.size * (self.length * width + 2 * BRANCHES * SLOTS)


def cases() -> list[Case]:
    """All cases, most telling first: a run that reaches its limit of time drops the last."""
    models = {"7b": (28, 4, 128), "8b": (32, 8, 128)}
    lengths = (16384, 32768, 8192, 4096, 65536, 131072)
    causal = lambda m, n: Case(f"{m}-causal-{n // 1024}k", "attend", *models[m], n, backward=n <= 65536)  # noqa: E731
    found = [causal(m, n) for n in lengths for m in models]
    found[4:4] = [Case(f"{m}-packed-32k", "attend", *models[m], 32768, (1500, 4000, 700, 2400)) for m in models]
    for cache in ("bfloat16", "float8_e4m3fn", "int8"):
        found += [
            Case(f"{m}-decode-{n // 1024}k-{cache}", "decode", *models[m], n, backward=False, cache=cache)
            for n in (16384, 65536, 131072) for m in models
        ]  # fmt: skip
    for size, heads in ((80, 16), (72, 16), (64, 16), (96, 16)):
        found += [
            Case(f"frames-{size}", "attend", heads, heads, size, 16384, (1024,), causal=False),
            Case(f"windows-{size}", "attend", heads, heads, size, 16384, (64,), causal=False),
        ]
    return found


def small(case: Case) -> Case:
    """The same kernels on a row short enough to check against float32 reference attention."""
    runs = tuple(max(1, n // 8) for n in case.documents)
    return dataclasses.replace(case, name=f"{case.name}-small", length=min(case.length, 4096) - 128, documents=runs)
