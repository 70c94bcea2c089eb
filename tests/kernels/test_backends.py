"""One suite for every backend of `attend`: values and gradients against the dense oracle, and honest refusals."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from videoauto_jax.errors import BackendError
from videoauto_jax.kernels import backends
from videoauto_jax.kernels.attention import attend
from videoauto_jax.kernels.mask import Mask, packed, shared

BACKENDS = {
    "reference": "float32",
    "mosaic": "bfloat16",
    "splash": "float32",
    "cudnn": "bfloat16",
    "tokamax": "bfloat16",
}
"""Backend -> dtype that it is tested in; of cuDNN and tokamax what surrounds them, with stand-ins for their kernels."""
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
"""Norm of the error over norm of the result."""
SEEDS = st.integers(0, 2**31)
ENVIRONMENT = ("need jax", "cannot be imported")
"""What a refusal may say here without being a failure."""


def one_document(dense):
    ids = np.pad(np.ones((1, 190), np.int32), ((0, 0), (0, 10)))
    return {
        "queries": 200,
        "heads": 2,
        "kv_heads": 1,
        "size": 64,
        "mask": packed(jnp.asarray(ids), causal=True, aligned=True),
    }


def packed_documents(dense):
    ids = np.concatenate([dense.segments(0, 1, 100, longest=40), dense.segments(1, 1, 233, longest=2) % 3], 1)
    return {"queries": 333, "heads": 3, "kv_heads": 1, "size": 128, "mask": packed(jnp.asarray(ids), causal=True)}


def frames(dense):
    ids = dense.segments(2, 2, 150, longest=70)
    return {
        "queries": 150,
        "rows": 2,
        "heads": 2,
        "kv_heads": 2,
        "size": 72,
        "mask": packed(jnp.asarray(ids), causal=False),
    }


def branches_over_a_prompt(dense):
    queries, keys = np.arange(40)[None] % 5 > 0, np.arange(300)[None] // 7 % 43 > 0
    return {"queries": 40, "keys": 300, "heads": 2, "kv_heads": 1, "size": 80, "mask": shared(queries, keys)}


def branches_over_their_prompt(dense):
    queries, keys = np.arange(24)[None] % 5 > 0, np.arange(130)[None] < 101
    mask = shared(queries, keys, aligned=True)
    return {"queries": 24, "keys": 130, "heads": 2, "kv_heads": 1, "size": 64, "mask": mask}


def any_ranges(dense):
    start, stop = np.sort(np.random.default_rng(3).integers(0, 271, (2, 1, 140)), axis=0)
    mask = Mask(*(jnp.asarray(x, jnp.int32) for x in (start, np.where(np.arange(140) % 9 == 0, start, stop))))
    return {"queries": 140, "keys": 270, "heads": 2, "kv_heads": 2, "size": 96, "mask": mask}


def bounded_frames(dense):
    ids = dense.segments(4, 1, 150, longest=30)
    mask = packed(jnp.asarray(ids), causal=False, bound=30)
    return {"queries": 150, "heads": 1, "kv_heads": 1, "size": 80, "mask": mask}


CASES = [
    bounded_frames, one_document, packed_documents, frames, branches_over_a_prompt, branches_over_their_prompt,
    any_ranges,
]  # fmt: skip
CANNOT = {("splash", "any_ranges"): "segments, not a range"} | {
    ("cudnn", case.__name__): "rows of one sequence"
    for case in CASES
    if case not in (one_document, branches_over_their_prompt)
}
"""What a backend refuses, and the words of its reason."""


@pytest.fixture
def usable(monkeypatch, request):
    """`usable(backend)`: as far as it can be made to run here."""

    def make(backend):
        if backend in ("cudnn", "tokamax"):
            request.getfixturevalue(f"{backend}_stand_in")
            monkeypatch.setattr(backends, "device_kind", lambda: "NVIDIA H100 80GB HBM3")

    return make


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients(dense, backend, case, usable, capfd):
    usable(backend)
    check(dense, backend, case(dense), CANNOT.get((backend, case.__name__)))
    assert "RACE DETECTED" not in capfd.readouterr().out


def check(dense, backend, facts, cannot=None, seed=0):
    facts = {"rows": 1, "keys": facts["queries"]} | facts
    mask, dtype = facts.pop("mask"), BACKENDS[backend]
    qkv = [jnp.asarray(x, dtype) for x in dense.arrays(seed, **facts)]
    with backends.interpreted():
        reason = backends.refusal("attend", backend, *qkv, mask)
        if reason and any(text in reason for text in ENVIRONMENT):
            pytest.skip(reason)
        if cannot:
            assert cannot in reason
            return
        agree(dense, lambda q, k, v: attend(q, k, v, mask, backend=backend), qkv, mask, TOLERANCE[dtype])


@st.composite
def calls(draw):
    """Any call but of arbitrary ranges, which one library cannot serve: lengths that no block divides, segments of one
    token, queries that see nothing, 7 queries per key head, and rows of one document."""
    kind, length, seed = draw(st.sampled_from(["causal", "segments", "shared"])), draw(st.integers(1, 150)), draw(SEEDS)
    rng, size = np.random.default_rng(seed), draw(st.sampled_from([64, 72, 80, 96, 128]))
    sizes = {"queries": length, "heads": draw(st.sampled_from([1, 2, 7])), "kv_heads": 1, "size": size, "seed": seed}
    if kind == "shared":
        keys = draw(st.integers(1, 300))
        there = jnp.asarray(np.arange(keys) < rng.integers(0, keys + 1, (1, 1)))
        return sizes | {"keys": keys, "mask": shared(jnp.asarray(rng.random((1, length)) < 0.9), there, aligned=True)}
    runs = rng.integers(1, draw(st.sampled_from([2, 40, 200])), length)
    ids = np.repeat(np.arange(length) % 5, runs)[:length][None]  # every fifth run is padding
    return sizes | {"mask": packed(jnp.asarray(ids, jnp.int32), causal=kind == "causal")}


@pytest.mark.parametrize("backend, examples", [("splash", 2), ("mosaic", 2)])
def test_shapes_nobody_thought_of(dense, backend, examples, capfd):
    @settings(deadline=None, max_examples=examples, derandomize=True, phases=[Phase.generate])
    @given(facts=calls())
    def run(facts):
        check(dense, backend, facts, seed=facts.pop("seed"))

    run()
    assert "RACE DETECTED" not in capfd.readouterr().out


def agree(dense, function, qkv, mask, tolerance):
    allowed = np.array(mask.allowed(qkv[1].shape[1]))
    seen = allowed.any(-1)
    rng = np.random.default_rng(1)
    out_bar = np.asarray(jnp.asarray(rng.normal(size=qkv[0].shape), qkv[0].dtype), np.float32)
    lse_bar = rng.normal(size=qkv[0].shape[:3]).astype(np.float32) * seen[..., None]
    wide = [np.asarray(x, np.float32) for x in qkv]
    out, lse, bars = dense.oracle(*wide, allowed, out_bar, lse_bar)
    (got_out, got_lse), vjp = jax.vjp(function, *qkv)
    got_bars = vjp((jnp.asarray(out_bar, got_out.dtype), jnp.asarray(lse_bar)))
    assert got_out.dtype == qkv[0].dtype and got_lse.dtype == jnp.float32
    assert (np.asarray(got_out, np.float32)[~seen] == 0).all() and np.isneginf(np.asarray(got_lse)[~seen]).all()
    pairs = [(got_out, out), (np.asarray(got_lse)[seen], lse[seen]), *zip(got_bars, bars)]
    for name, (got, expected) in zip(("out", "lse", "q_bar", "k_bar", "v_bar"), pairs):
        error = np.linalg.norm(np.asarray(got, np.float64) - expected) / max(np.linalg.norm(expected), 1e-3)
        assert error < tolerance, f"{name}: {error:.1e}"


def test_an_unknown_backend_is_named(dense):
    ids = np.ones((1, 2), np.int32)
    with pytest.raises(BackendError, match="no attend backend 'flash'. There are: auto, reference, mosaic"):
        attend(*dense.arrays(0, 1, 2, 2), packed(ids, causal=True), backend="flash")
    with pytest.raises(BackendError, match="no attend backend 'flash'"):
        attend(*dense.arrays(0, 1, 2, 0), shared(ids > 0, np.zeros((1, 0), bool)), backend="flash")


@pytest.mark.parametrize("backend, reason", [("mosaic", "Hopper|jax 0.11"), ("splash", "for TPUs, and this is cpu")])
def test_a_backend_that_cannot_serve_says_why(dense, backend, reason):
    ids = np.ones((1, 2), np.int32)
    with pytest.raises(BackendError, match=reason):
        attend(*dense.arrays(0, 1, 2, 2), packed(ids, causal=True), backend=backend)


@pytest.mark.parametrize("library, reason", [(None, "No module"), ("import jax; jax.gone", "AttributeError")])
def test_a_library_that_cannot_be_imported_is_a_refusal(dense, monkeypatch, tmp_path, library, reason):
    """Whether it is not there or was written for another jax."""
    backend = f"{backends.__package__}.tokamax_mosaic"
    for name in [name for name in sys.modules if name == backend or name.split(".")[0] == "tokamax"]:
        monkeypatch.delitem(sys.modules, name)
    if library is None:
        monkeypatch.setitem(sys.modules, "tokamax", None)
    else:
        (tmp_path / "tokamax.py").write_text(library)
        monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BackendError, match=rf"^attention backend 'tokamax' .* cannot be imported \({reason}"):
        attend(*dense.arrays(0, 1, 2, 2), packed(np.ones((1, 2), np.int32), causal=True), backend="tokamax")


def test_auto_takes_the_first_that_does_not_refuse(dense, monkeypatch):
    qkv, mask = dense.arrays(0, 1, 2, 2), packed(np.ones((1, 2), np.int32), causal=True)
    assert backends.choose("attend", "auto", *qkv, mask).__name__.endswith("reference")
    for kind in ("NVIDIA H100 80GB HBM3", "NVIDIA A100", "TPU v5p", "something new"):
        monkeypatch.setattr(backends, "device_kind", lambda kind=kind: kind)
        order = backends.preferences("attend", *qkv, mask)
        assert order[-1] == "reference" and set(order) <= set(backends.MODULES["attend"])


def test_auto_without_a_fast_kernel_says_so_once(dense, monkeypatch, caplog):
    monkeypatch.setattr(backends, "device_kind", lambda: "NVIDIA H100 PCIe")
    backends._say_once.cache_clear()
    for _ in range(2):
        attend(*dense.arrays(0, 1, 2, 2), packed(np.ones((1, 2), np.int32), causal=True))
    (said,) = caplog.messages
    assert "NVIDIA H100 PCIe without a fast kernel" in said and "cudnn: it multiplies bfloat16" in said


def test_gpus_of_this_process_tell_their_capability(monkeypatch):
    gpu = SimpleNamespace(device_kind="NVIDIA A100", compute_capability="8.0")
    monkeypatch.setattr(jax, "devices", lambda *_: [gpu])
    for kind, expected in (("NVIDIA A100", 8.0), ("NVIDIA H100 80GB HBM3", None), ("cpu", None)):
        monkeypatch.setattr(backends, "device_kind", lambda kind=kind: kind)
        assert backends.capability() == expected
