"""VideoAuto-R1 in JAX: video language models that think once, answer twice, and only when it pays."""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "load_model": "videoauto_jax.models.hf",
    "save_model": "videoauto_jax.models.hf",
    "load_processor": "videoauto_jax.data.processor",
    "Sampler": "videoauto_jax.sampling.sampler",
    "SamplingConfig": "videoauto_jax.sampling.sampler",
    "Answer": "videoauto_jax.sampling.answer",
    "BOXED_SUFFIX": "videoauto_jax.protocol.prompts",
    "system_prompt": "videoauto_jax.protocol.prompts",
    "VideoAutoError": "videoauto_jax.errors",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str):
    # Lazily, so that `import videoauto_jax` (in data and reward workers, in `videoauto --help`) does not import jax.
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'videoauto_jax' has no attribute {name!r}")
