"""Decoding in Triton: all branches of a prompt read its cache together, and each its own.

A decoding step is bound by memory. The prompt's keys are read once for `G * N / K` rows (16 branches of 7 heads: 112),
which is also what makes the product tall enough for tensor cores. Keys are split over programs so that one prompt fills
the GPU; a second small kernel merges the partials of prompt and branches alike, so a step is two launches.
"""

import dataclasses
import inspect
import itertools
import math

import jax
import jax.numpy as jnp
import triton
from jaxtyping import Array, Float, Int

from videoauto_jax.kernels import backends
from videoauto_jax.kernels.mask import Mask
from videoauto_jax.kernels.quantized import Quantized
from videoauto_jax.kernels.triton_kernels import merge_kernel, split_kernel

XLA_SPLITS = False

PROGRAMS = 2 * 132
"""Programs aimed at: two for each multiprocessor of an H100, so that loads of one hide the arithmetic of the other."""
LEAST_SPLIT = 512
"""Keys of a program at least: below, writing and merging partials costs more than it spreads."""
SPLIT_OPTIONS = {"num_warps": 8, "num_stages": 3}
"""Four warps would spill the 128 rows of sixteen branches; three stages keep 64 KiB of keys in flight."""
MERGE_OPTIONS = {"num_warps": 4}


def refusal(
    q: Array,
    prompt_k: Array | Quantized,
    prompt_v: Array | Quantized,
    mask: Mask,
    k: Array | Quantized,
    v: Array | Quantized,
    lengths: Array,
    layer: Array,
) -> str | None:
    """Why this kernel cannot serve a call, or None."""
    kind = backends.device_kind()
    if not kind.startswith("NVIDIA"):
        return f"its kernels are for NVIDIA GPUs, and this is {kind}"
    try:
        import jax_triton  # noqa: F401
    except ImportError as error:
        return f"jax-triton cannot be imported ({error})"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"queries are {q.dtype}, not bfloat16 or float16"
    if any(isinstance(x, Quantized) != isinstance(y, Quantized) for x, y in ((prompt_k, prompt_v), (k, v))):
        return "keys and values must both be quantized, or neither"
    if q.shape[-1] > 128:
        return f"head size {q.shape[-1]} is above 128, for which its tiles have room"
    capability = backends.capability()
    eight = [x.values.dtype for x in (prompt_k, k) if isinstance(x, Quantized)]
    if capability is not None and capability < 8.9 and jnp.dtype(jnp.float8_e4m3fn) in eight:
        return f"a GPU of compute capability {capability} has no float8_e4m3fn"
    return None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a call is cut: static facts, from which the grids and the kernels' constants follow.

    Attributes:
        rows: prompts, `B`.
        branches: `G`.
        heads, kv_heads: `N`, `K`.
        prompt, slots: keys of the prompt and of a branch, `P` and `R`.
        reach: of a branch's keys, how many may be filled.
        size: `H`.
        split: keys of one program.
        quantized, own_quantized: whether the prompt's and the branches' cache have scales.
    """

    rows: int
    branches: int
    heads: int
    kv_heads: int
    prompt: int
    slots: int
    reach: int
    size: int
    split: int
    quantized: bool
    own_quantized: bool

    @property
    def prompt_splits(self) -> int:
        """Programs per prompt and key head."""
        return triton.cdiv(self.prompt, self.split)

    @property
    def own_splits(self) -> int:
        """Programs per branch and key head."""
        return triton.cdiv(self.reach, self.split)

    @property
    def partials(self) -> tuple[int, ...]:
        """Shape of the partial log-sum-exps; the outputs have H more."""
        queries = self.branches * self.heads // self.kv_heads
        return self.rows * self.kv_heads, self.prompt_splits + self.own_splits, queries

    def split_launch(self) -> tuple[tuple[int, ...], dict]:
        """Grid and constants of the first kernel."""
        group = self.heads // self.kv_heads
        tile = min(max(16, triton.next_power_of_2(self.branches * group)), 128)
        tiles = triton.cdiv(self.branches * group, tile)
        constants = {
            "G": self.branches,
            "N": self.heads,
            "K": self.kv_heads,
            "P": self.prompt,
            "R": self.slots,
            "H": self.size,
            "HEAD": max(16, triton.next_power_of_2(self.size)),
            "SPLIT": self.split,
            "PROMPT_SPLITS": self.prompt_splits,
            "OWN_SPLITS": self.own_splits,
            "TILES": tiles,
            "SHARED_ROWS": tile,
            "OWN_ROWS": max(16, triton.next_power_of_2(group)),
            "BLOCK": 64,
            "QUANTIZED": self.quantized,
            "OWN_QUANTIZED": self.own_quantized,
            "SCALE": self.size**-0.5 * math.log2(math.e),
        }
        return (tiles * self.prompt_splits + self.branches * self.own_splits, self.rows * self.kv_heads, 1), constants

    def merge_launch(self) -> tuple[tuple[int, ...], dict]:
        """Grid and constants of the second kernel."""
        pairs, splits, queries = self.partials
        constants = {
            "G": self.branches,
            "N": self.heads,
            "K": self.kv_heads,
            "H": self.size,
            "HEAD": triton.next_power_of_2(self.size),
            "SPLITS": splits,
            "BLOCK": min(32, triton.next_power_of_2(splits)),
        }
        return (queries, pairs, 1), constants


def plan(q: Array, prompt_k: Array | Quantized, k: Array | Quantized, reach: int | None = None) -> Plan:
    """The plan of a call."""
    rows, branches, heads, size = q.shape
    prompt, kv_heads = prompt_k.shape[2:4]
    wanted = triton.cdiv(prompt * rows * kv_heads, PROGRAMS)
    split = max(LEAST_SPLIT, triton.cdiv(wanted, 64) * 64)
    quantized = (isinstance(x, Quantized) for x in (prompt_k, k))
    slots = k.shape[3]
    reach = slots if reach is None else min(reach, slots)
    return Plan(rows, branches, heads, kv_heads, prompt, slots, reach, size, split, *quantized)


def decode(
    q: Float[Array, "B G N H"],
    prompt_k: Array | Quantized,
    prompt_v: Array | Quantized,
    mask: Mask,
    k: Float[Array, "L B G R K H"] | Quantized,
    v: Float[Array, "L B G R K H"] | Quantized,
    lengths: Int[Array, "B G"],
    layer: Int[Array, ""],
    *,
    reach: int | None = None,
) -> tuple[Float[Array, "B G N H"], Float[Array, "B G N"]]:
    """See `videoauto_jax.kernels.attention.decode_partial`.

    Args:
        reach: static upper bound on `lengths`; no program is started for what lies beyond.
    """
    cut = plan(q, prompt_k, k, reach)
    values = lambda x: (x.values, x.scale) if isinstance(x, Quantized) else (x, lengths)  # noqa: E731  no scale is read
    pairs = [tuple(zip(values(keys), values(other))) for keys, other in ((prompt_k, prompt_v), (k, v))]
    ends = [jnp.asarray(x, jnp.int32) for x in (mask.start, mask.stop, lengths, layer)]
    operands = q, *itertools.chain(*pairs[0], *pairs[1]), *ends[:3], ends[3].reshape(1)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((*cut.partials, cut.size), cut.partials)]
    outs, lses = _call(split_kernel, operands, shapes, cut.split_launch(), **SPLIT_OPTIONS)
    shapes = [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32)]
    return tuple(_call(merge_kernel, (outs, lses), shapes, cut.merge_launch(), **MERGE_OPTIONS))


def _call(kernel, operands, out, launch, **options) -> list[Array]:
    """jax-triton 0.3 takes `out_shape`, 0.4 `out_type`; without a GPU, neither can ask what it is compiling for."""
    import jax_triton

    grid, constants = launch
    parameters = inspect.signature(jax_triton.triton_call).parameters
    options["out_shape" if "out_shape" in parameters else "out_type"] = out
    if jax.default_backend() != "gpu":
        options["compute_capability"] = 90
    return jax_triton.triton_call(*operands, kernel=kernel, grid=grid, **options, **constants)
