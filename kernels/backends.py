"""The backends of attention: which exist, why one cannot serve a call, and which one `auto` takes.

A backend is a module with `attend` or `decode`; with `refusal`, which takes the same arguments and returns the reason
in words, or None; and with `XLA_SPLITS`, whether XLA compiles it whole and so knows how to split it over a mesh.
"""

import contextlib
import contextvars
import functools
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax

from videoauto_jax.errors import BackendError
from videoauto_jax.kernels.mask import Mask

MODULES = {
    "attend": {"reference": "reference", "mosaic": "mosaic", "cudnn": "cudnn", "splash": "splash"},
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
    """What the program being traced will run on: the abstract mesh's device, if it names one, or this process's.

    Returns:
        `cpu`, or a kind as JAX spells it, such as `NVIDIA H100 80GB HBM3` or `TPU v6 lite`.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if device is None:
        device = jax.config.jax_default_device or jax.devices()[0]
    return jax.devices(device)[0].device_kind if isinstance(device, str) else device.device_kind


def capability() -> float | None:
    """The compute capability of an NVIDIA GPU, such as 9.0; None where the device does not tell."""
    found = getattr(jax.config.jax_default_device or jax.devices()[0], "compute_capability", None)
    return float(found) if found else None


def choose(operation: str, name: str, *arguments) -> ModuleType:
    """The backend that serves a call.

    Args:
        operation: a key of `MODULES`.
        name: a backend, or `auto`: the first of `autotune.json`'s list for this device and call that does not refuse.
        arguments: those of the operation.

    Raises:
        BackendError: there is no such backend, or the named one cannot serve the call.
    """
    if name == "auto":
        names = [name for name in preferences(operation, *arguments) if not refusal(operation, name, *arguments)]
        return module(operation, names[0])
    if name not in MODULES[operation]:
        known = ", ".join(MODULES[operation])
        raise BackendError(f"no {operation} backend {name!r}", fix=f"There are: auto, {known}")
    if reason := refusal(operation, name, *arguments):
        raise BackendError(f"attention backend {name!r} cannot serve this call: {reason}", fix="Use backend='auto'")
    return module(operation, name)


def refusal(operation: str, name: str, *arguments) -> str | None:
    """Why a backend cannot serve a call, or None."""
    try:
        backend = module(operation, name)
    except ImportError as error:
        return f"it cannot be imported ({error})"
    return backend.refusal(*arguments)


def module(operation: str, name: str) -> ModuleType:
    """Imports a backend, only when one asks for it: none of their libraries is needed by another."""
    return importlib.import_module(f"videoauto_jax.kernels.{MODULES[operation][name]}")


def preferences(operation: str, q: jax.Array, k: jax.Array, *rest) -> list[str]:
    """Backends for a call, best first: the first row of `autotune.json` whose every condition holds."""
    facts = {"operation": operation, "device": device_kind(), "keys": k.shape[-3], "head_size": q.shape[-1]}
    facts |= {"mask": next(x.kind for x in rest if isinstance(x, Mask))}
    return next(row["order"] for row in _table()["rows"] if all(_holds(facts, *pair) for pair in row.items()))


def _holds(facts: dict, key: str, wanted: object) -> bool:
    if key == "device":
        return facts["device"].startswith(wanted)
    if key == "least_keys":
        return facts["keys"] >= wanted
    return key == "order" or facts[key] == wanted


@functools.cache
def _table() -> dict:
    return json.loads((Path(__file__).parent / "autotune.json").read_text())
