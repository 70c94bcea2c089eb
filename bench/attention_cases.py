"""What is measured: attention as the published models meet it, from a prompt of 4k tokens to one of 128k."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from videoauto_jax.kernels.attention import DecodeCache, attend, decode_partial
from videoauto_jax.kernels.mask import Mask, packed, shared
from videoauto_jax.kernels.quantized import Quantized, dequantize

BRANCHES, SLOTS = 16, 1024
MODELS = {"7b": (28, 4, 128), "8b": (32, 8, 128), "3b": (16, 2, 128), "30b": (32, 4, 128)}
"""Query heads, key/value heads and head size of the published decoders; the last two have 128 decoding rows."""


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
        queries: 0 where a row sees itself; else so many tokens of branches see a prompt of `length` tokens.
        bounded: whether the longest document's length is a static bound.
        ragged: whether the branches' own caches are filled unequally.
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
    queries: int = 0
    bounded: bool = False
    ragged: bool = False

    def mask(self) -> Mask:
        """Of the queries over the row or the prompt."""
        if self.operation == "decode" or self.queries:
            there = jnp.ones((1, self.queries or BRANCHES), bool), jnp.ones((1, self.length), bool)
            return shared(*there, aligned=True)
        ids = np.searchsorted(self.ends(), np.arange(self.length), side="right").astype(np.int32)[None] + 1
        bound = max(self.documents) if self.bounded else None
        return packed(jnp.asarray(ids), causal=self.causal, bound=bound, aligned=not self.documents)

    def ends(self) -> np.ndarray:
        """Where each document ends."""
        runs = self.documents or (self.length,)
        return np.minimum(np.cumsum(np.resize(runs, -(-self.length // min(runs)))), self.length)

    def lengths(self) -> np.ndarray:
        """Filled slots of each branch's own cache."""
        return np.linspace(0, SLOTS, BRANCHES).astype(np.int32) if self.ragged else np.full(BRANCHES, SLOTS, np.int32)

    def shapes(self) -> tuple:
        """Shapes of the arguments that `function` takes."""
        array = lambda *shape, dtype="bfloat16": jax.ShapeDtypeStruct((1, *shape), dtype)  # noqa: E731
        if self.operation == "attend":
            kv = array(self.length, self.kv_heads, self.size)
            return array(self.queries or self.length, self.heads, self.size), kv, kv
        array = lambda *shape, dtype="bfloat16": jax.ShapeDtypeStruct((self.layers, 1, *shape), dtype)  # noqa: E731
        keys = [(self.length, self.kv_heads), (BRANCHES, SLOTS, self.kv_heads)]
        cache, own = (array(*shape, self.size, dtype=self.cache) for shape in keys)
        if self.cache != "bfloat16":
            cache, own = (Quantized(x, array(*shape, dtype="float32")) for x, shape in zip((cache, own), keys))
        return jax.ShapeDtypeStruct((1, BRANCHES, self.heads, self.size), "bfloat16"), cache, cache, own, own

    def function(self, backend: str) -> Callable:
        """What is compiled and timed: the output; of branches over a prompt, whose part is merged, both results."""
        if self.operation == "decode":
            return lambda *operands: self.decode(*operands, backend=backend)
        return lambda *qkv: attend(*qkv, self.mask(), backend=backend)[slice(None) if self.queries else 0]

    def gradient(self, backend: str) -> Callable:
        """The same with gradients: results, and the gradients of q, k and v."""

        def run(*qkv):
            results, vjp = jax.vjp(self.function(backend), *qkv)
            return results, *vjp((qkv[0], results[1]) if self.queries else qkv[0])

        return run

    def decode(self, q, k, v, own_k, own_v, *, backend: str):
        """Outputs of all layers of a decoding step, each layer's the next one's queries."""
        there = jnp.ones((1, self.length), jnp.int32)
        cache = DecodeCache(k, v, there, own_k, own_v, jnp.asarray(self.lengths())[None])
        step = lambda q, layer: (decode_partial(q, cache, layer, backend=backend)[0],) * 2  # noqa: E731
        return jax.lax.scan(step, q, jnp.arange(self.layers))[1]

    def expected(self) -> Callable:
        """What every backend is compared with: the reference, given float32; of decoding, a row of its own for each
        branch, the prompt's keys before its own."""
        if self.operation == "attend":
            return self.gradient("reference") if self.backward else self.function("reference")

        def layer(q, prompt_and_own):
            k, v = (
                jnp.concatenate([jnp.repeat(prompt, BRANCHES, axis=0), own[0]], axis=1)
                for prompt, own in ((dequantize(x, jnp.float32) for x in pair) for pair in prompt_and_own)
            )
            stop = self.length + jnp.asarray(self.lengths())[:, None]
            mask = Mask(jnp.zeros_like(stop), stop)
            return (attend(q[0][:, None], k, v, mask, backend="reference")[0][None, :, 0],) * 2

        return lambda q, k, v, own_k, own_v: jax.lax.scan(layer, q, ((k, own_k), (v, own_v)))[1]

    @property
    def calls(self) -> int:
        """Calls timed together, so that a launch does not count: so many as take a fiftieth of a second at a guess."""
        return int(np.clip(0.02 / self.guess, 1, 16))

    @property
    def guess(self) -> float:
        """Seconds of a forward pass at 400 TFLOP/s and 2 TB/s."""
        return max(self.flops / 4e14, self.bytes / 2e12 if self.operation == "decode" else 0.0)

    @property
    def kernel(self) -> tuple:
        """What decides which kernel is compiled, and not only how long it runs."""
        bound = max(self.documents) if self.bounded else 0
        packs = bool(self.documents), bool(self.queries), bound, self.causal
        return self.operation, self.heads, self.kv_heads, self.size, *packs, self.cache

    @property
    def flops(self) -> float:
        """Useful multiplications and additions of the forward pass; the backward pass has 2.5 times as many."""
        if self.operation == "decode":
            return 4.0 * self.layers * self.heads * self.size * (BRANCHES * self.length + float(self.lengths().sum()))
        if self.queries:
            return 4.0 * self.heads * self.size * self.queries * self.length
        runs = np.diff(self.ends(), prepend=0).astype(float)
        pairs = np.sum(runs * (runs + 1) / 2 if self.causal else runs**2)
        return 4.0 * self.heads * self.size * float(pairs)

    @property
    def bytes(self) -> float:
        """Of keys and values that a decoding step must read."""
        width = 2 if self.cache == "bfloat16" else 1 + 4 / self.size
        return 2.0 * self.layers * self.kv_heads * self.size * (self.length + float(self.lengths().sum())) * width


def cases() -> list[Case]:
    """All cases, most telling first: a run that reaches its limit of time drops the last."""
    first = causal(16, 32) + packed_rows(32) + decode("bfloat16", 64, 128, 16) + decode("float8_e4m3fn", 64, 128, 16)
    groups = over_prompts(16) + branches(32) + decode("bfloat16", 64, models=("3b", "30b"))
    groups += decode("bfloat16", 64, ragged=True)
    then = vision("frames", 1024, 80, 72) + vision("windows", 64, 80, 72) + causal(8, 64, 128, 4)
    return first + groups + then + decode("int8", 64, 128, 16) + vision("frames", 1024, 64, 96)


def causal(*thousands: int) -> list[Case]:
    """Prefill: one document."""
    return [
        Case(f"{m}-causal-{n}k", "attend", *MODELS[m], n * 1024, backward=n <= 64)
        for n in thousands for m in ("7b", "8b")
    ]  # fmt: skip


def packed_rows(thousands: int) -> list[Case]:
    """Documents of unequal length in one row."""
    runs = 1500, 4000, 700, 2400
    return [Case(f"{m}-packed-{thousands}k", "attend", *MODELS[m], thousands * 1024, runs) for m in ("7b", "8b")]


def over_prompts(thousands: int) -> list[Case]:
    """All tokens of sixteen branches over their prompt, as training has them."""
    queries = BRANCHES * 2 * SLOTS
    return [
        Case(f"{m}-shared-{thousands}k", "attend", *MODELS[m], thousands * 1024, queries=queries) for m in ("7b", "8b")
    ]


def branches(thousands: int) -> list[Case]:
    """The same branches over themselves: packed, of bounded length."""
    runs = 2048, 300, 1200, 90, 1700
    return [
        Case(f"{m}-branches-{thousands}k", "attend", *MODELS[m], thousands * 1024, runs, bounded=True)
        for m in ("7b", "8b")
    ]


def decode(cache: str, *thousands: int, models: tuple[str, ...] = ("7b", "8b"), ragged: bool = False) -> list[Case]:
    """Eight layers of a decoding step."""
    options = {"backward": False, "cache": cache, "layers": 8, "ragged": ragged}
    return [
        Case(f"{m}-decode-{n}k-{cache}{'-ragged' * ragged}", "decode", *MODELS[m], n * 1024, **options)
        for n in thousands for m in models
    ]  # fmt: skip


def vision(name: str, patches: int, *sizes: int) -> list[Case]:
    """Packed frames or windows of a vision tower, of equal size."""
    options = {"causal": False, "bounded": True}
    return [Case(f"{name}-{size}", "attend", 16, 16, size, 16384, (patches,), **options) for size in sizes]


def small(case: Case) -> Case:
    """The same kernels on a row short enough to check against float32 reference attention.

    Rows end within a block; prompts are cut as long ones are, and branches' own caches are filled unequally.
    """
    if case.operation == "decode":
        return dataclasses.replace(
            case, name=f"{case.name}-small", length=min(case.length, 4096), layers=2, ragged=True
        )
    runs = tuple(max(1, n // 8) for n in case.documents) if case.causal else case.documents
    length, queries = min(case.length, 4000), min(case.queries, 3000)
    return dataclasses.replace(case, name=f"{case.name}-small", length=length, documents=runs, queries=queries)


def tiny(case: Case) -> Case:
    """The same kind of case for a CPU, to see that everything runs."""
    heads = 2 * case.heads // case.kv_heads
    sizes = {"heads": heads, "kv_heads": 2, "size": 16, "length": 192, "queries": min(case.queries, 96)}
    runs = tuple(max(2, n // 32) for n in case.documents)
    return dataclasses.replace(case, **sizes, documents=runs, layers=min(case.layers, 2))
