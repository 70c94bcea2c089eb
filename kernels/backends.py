"""The backends of attention: which exist, why one cannot serve a call, and which one `auto` takes.

A backend is a module with `attend` or `decode`; with `refusal`, which takes the same arguments and returns the reason
in words, or None; and with `XLA_SPLITS`, whether XLA compiles it whole and so knows how to split it over a mesh.
"""

import contextlib
import contextvars
import functools
import importlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp

from videoauto_jax.errors import BackendError
from videoauto_jax.kernels.mask import Mask
from videoauto_jax.kernels.quantized import Quantized

_log = logging.getLogger(__name__)

MODULES = {
    "attend": {
        "reference": "reference",
        "mosaic": "mosaic",
        "cudnn": "cudnn",
        "splash": "splash",
        "tokamax": "tokamax_mosaic",
    },
    "decode": {"composed": "composed", "triton": "triton_decode"},
}
"""Operation -> backend -> module."""

_INTERPRET = contextvars.ContextVar("interpret", default=False)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Kernels traced inside run in their interpreters on the CPU, whatever they are made for. Slow: for tests."""
    token = _INTERPRET.set(True)
    try:
        yield
    finally:
        _INTERPRET.reset(token)


def interpreting() -> bool:
    """Whether kernels are traced for their interpreters."""
    return _INTERPRET.get()


def device_kind() -> str:
    """What the program being traced will run on: the abstract mesh's device, if it names one, or the process's default.

    Returns:
        `cpu`, or a kind as JAX spells it, such as `NVIDIA H100 80GB HBM3` or `TPU v6 lite`.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None) or jax.config.jax_default_device
    return (jax.devices(device)[0] if isinstance(device, str | None) else device).device_kind


def capability() -> float | None:
    """That kind's compute capability if it is an NVIDIA GPU of this process, such as 9.0; None where nobody tells."""
    kind = device_kind()
    found = next((getattr(x, "compute_capability", None) for x in jax.devices() if x.device_kind == kind), None)
    return float(found) if found else None


def choose(operation: str, name: str, *arguments, forward_only: bool = False) -> ModuleType:
    """The backend that serves a call.

    Args:
        operation: a key of `MODULES`.
        name: a backend, or `auto`: the first of `autotune.json`'s list for this device and call that does not refuse.
        arguments: those of the operation.
        forward_only: no gradient will be asked for; `auto` prefers otherwise what is fastest with its gradient.

    Raises:
        BackendError: there is no such backend, or the named one cannot serve the call.
    """
    known(operation, name)
    if name == "auto":
        names = preferences(operation, *arguments, forward_only=forward_only)
        return module(operation, _first(operation, names, arguments))
    if reason := refusal(operation, name, *arguments):
        raise BackendError(f"attention backend {name!r} cannot serve this call: {reason}", fix="Use backend='auto'")
    return module(operation, name)


def known(operation: str, name: str) -> None:
    """Raises `BackendError` for a name that is neither `auto` nor a backend of the operation."""
    if name != "auto" and name not in MODULES[operation]:
        raise BackendError(f"no {operation} backend {name!r}", fix=f"There are: auto, {', '.join(MODULES[operation])}")


def _first(operation: str, names: list[str], arguments: tuple) -> str:
    """The first that does not refuse; what runs on anything is last, and for an accelerator a surprise worth a line."""
    reasons = {}
    for name in names[:-1]:
        reasons[name] = refusal(operation, name, *arguments)
        if reasons[name] is None:
            return name
    if (kind := device_kind()) != "cpu" and (reasons or operation == "attend"):
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "none is known for this device"
        _say_once(f"attention on {kind} without a fast kernel, {operation} by {names[-1]!r}. {why}")
    return names[-1]


@functools.cache
def _say_once(text: str) -> None:
    _log.warning(text)


def refusal(operation: str, name: str, *arguments) -> str | None:
    """Why a backend cannot serve a call, or None."""
    try:
        backend = module(operation, name)
    except ImportError as error:
        return f"it cannot be imported ({error})"
    return backend.refusal(*arguments)


def module(operation: str, name: str) -> ModuleType:
    """Imports a backend, only when one asks for it: none of their libraries is needed by another.

    Raises:
        ImportError: its library is not installed, or does not go with this jax.
    """
    try:
        return importlib.import_module(f"videoauto_jax.kernels.{MODULES[operation][name]}")
    except ImportError:
        raise
    except Exception as error:  # what a library raises that looks for what its jax had
        raise ImportError(f"{type(error).__name__}: {error}") from error


def preferences(operation: str, q: jax.Array, k: jax.Array | Quantized, *rest, forward_only: bool = False) -> list[str]:
    """Backends for a call, best first: the first row of `autotune.json` whose every condition holds."""
    asked = facts(operation, q, k, *rest, forward_only=forward_only)
    return next(row["order"] for row in _table()["rows"] if all(_holds(asked, *pair) for pair in row.items()))


def facts(operation: str, q: jax.Array, k: jax.Array | Quantized, *rest, forward_only: bool = False) -> dict:
    """What rows of `autotune.json` may name of a call: `device` by its start, `least_…` from below, else exactly."""
    mask = next(x for x in rest if isinstance(x, Mask))
    return {
        "operation": operation,
        "device": device_kind(),
        "mask": mask.kind,
        "aligned": mask.aligned,
        "least_bound": mask.bound or 0,
        "least_keys": k.shape[-3],
        "heads": q.shape[-2],
        "kv_heads": k.shape[-2],
        "head_size": q.shape[-1],
        "cache": jnp.dtype(k.dtype).name,
        "forward_only": forward_only,
    }


def _holds(asked: dict, key: str, wanted: object) -> bool:
    if key == "device":
        return asked["device"].startswith(wanted)
    return key == "order" or (asked[key] >= wanted if key.startswith("least_") else asked[key] == wanted)


@functools.cache
def _table() -> dict:
    return json.loads((Path(__file__).parent / "autotune.json").read_text())
