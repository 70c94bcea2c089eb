"""Facts about parameters that follow from their path: their group, and whether they decay.

A path is `text/layers/attn/q/kernel`, the tuple of its parts, or a JAX key path. Only this file knows the names.
"""

import dataclasses
import re

import jax
import optax

from videoauto_jax.errors import ModelError

Path = str | tuple

# The first matching prefix decides. Groups are what upstream switches (tune_mm_vision, tune_mm_mlp, tune_mm_llm), with
# the embeddings and the head of the language model on their own switches.
GROUPS = (
    ("vision/", "vision"),
    ("merger/", "merger"),
    ("deepstack_mergers/", "merger"),
    ("text/embed/", "embed"),
    ("text/", "text"),
    ("head/", "head"),
)

# Biases, and anything normalisation holds. `ln_q`, the RMSNorm of Qwen2.5-VL's merger, belongs here: upstream matches
# words that miss it, and decays it.
UNDECAYED = re.compile(r"(^|/)([^/]*norm[^/]*|ln(_[^/]*|\d*))(/|$)|(^|[/_])bias$")


STACKED = re.compile(r"^(text/layers|vision/blocks|deepstack_mergers)/")


@dataclasses.dataclass(frozen=True)
class TrainableConfig:
    """Which groups train; the defaults are upstream's: all but the vision tower.

    Attributes:
        vision: patch embedding, position embedding and blocks of the tower.
        merger: the merger, and the DeepStack mergers of Qwen3-VL.
        text: decoder layers and the final norm.
        embed: token embeddings.
        head: the output projection, where it is not tied to the embeddings.
    """

    vision: bool = False
    merger: bool = True
    text: bool = True
    embed: bool = True
    head: bool = True

    def trainable(self, path: Path) -> bool:
        """Returns whether the parameter at `path` trains.

        Raises:
            ModelError: the path belongs to no group.
        """
        return getattr(self, group(path))

    def __call__(self, path: Path, value: object = None) -> bool:
        """The same, in the form of an NNX filter: `nnx.split(model, config, ...)`, `nnx.DiffState(0, config)`."""
        del value
        return self.trainable(path)


def group(path: Path) -> str:
    """Returns the group of a parameter: vision, merger, text, embed or head.

    Raises:
        ModelError: the path belongs to no group.
    """
    name = path_name(path)
    for prefix, owner in GROUPS:
        if f"{name}/".startswith(prefix):
            return owner
    raise ModelError(f"parameter {name} belongs to no parameter group", fix=f"Known prefixes: {_prefixes()}")


def decays(path: Path) -> bool:
    """Returns whether weight decay applies: everything but biases and norms, as transformers does it."""
    return UNDECAYED.search(path_name(path).lower()) is None


def matrix_axes(path: Path, rank: int) -> optax.contrib.MuonDimensionNumbers | None:
    """Returns which axes of a kernel a matrix product contracts and which it makes; None where there is no such matrix.

    A leading layer axis is neither: each layer is a matrix of its own.
    """
    name = path_name(path)
    if not name.endswith("kernel") or group(name) == "head":
        return None
    if "/experts/" in name:  # a matrix per layer and expert, and for gate_up two
        return optax.contrib.MuonDimensionNumbers((rank - 2,), (rank - 1,))
    first = 1 if STACKED.search(name) else 0
    inputs = 2 if name.endswith(("attention/o/kernel", "attention/proj/kernel")) else 1
    return optax.contrib.MuonDimensionNumbers(tuple(range(first, first + inputs)), tuple(range(first + inputs, rank)))


def path_name(path: Path) -> str:
    """Returns the path as `a/b/c`, without the `value` that NNX variables append."""
    if isinstance(path, str):
        return path.strip("/")
    parts = [_part(key) for key in path]
    return "/".join(parts[:-1] if isinstance(path[-1], jax.tree_util.GetAttrKey) and parts[-1] == "value" else parts)


def _part(key: object) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _prefixes() -> str:
    return ", ".join(prefix for prefix, _ in GROUPS)
