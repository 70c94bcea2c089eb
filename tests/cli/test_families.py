"""Every family through the whole stack: imported, trained both ways, exported, asked, evaluated."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from videoauto_jax.cli.main import main
from videoauto_jax.models.hf import write_tensors

FAMILIES = ["qwen2_5_vl", "qwen3_vl_moe"]  # Qwen3-VL goes this way in the other tests


@pytest.fixture
def videoauto(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert status == 0, err
        return out

    return run


def tensors_of(folder):
    return {key: tensor for file in sorted(folder.glob("*.safetensors")) for key, tensor in load_file(file).items()}


@pytest.mark.parametrize("family", [*FAMILIES, "qwen3_vl"])
def test_import_then_export_is_the_same_folder(family, checkpoint, videoauto, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(checkpoint(family), source)
    tensors = {key: t.astype(ml_dtypes.bfloat16) if t.ndim > 1 else t for key, t in tensors_of(source).items()}
    (source / "model.safetensors").unlink()
    write_tensors(tensors, source, "60KB")
    videoauto("import", source, "imported", "mesh.tensor=2")
    videoauto("export", "imported", "out", "dtype=base")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in source.iterdir()}
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            found, expected = load_file(tmp_path / "out" / path.name), load_file(path)
            assert found.keys() == expected.keys()
            for key, tensor in expected.items():
                assert found[key].dtype == tensor.dtype and found[key].tobytes() == tensor.tobytes(), key
        else:
            assert (tmp_path / "out" / path.name).read_text() == path.read_text(), path.name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stack(family, checkpoint, videoauto, tmp_path):
    rng, records = np.random.default_rng(0), []
    for n in range(4):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{n}.png")
        answer = {"answer": "A", "response": "\\boxed{A}<think>so</think>\\boxed{A}"}
        records.append({"problem_type": "exact_match", "question": f"What is {n}?", "image": f"{n}.png", **answer})
    (tmp_path / "toy.jsonl").write_text("\n".join(map(json.dumps, records)))
    sets = f"data.sets={{toy: {{loader: Plain, anno_path: {tmp_path}/toy.jsonl, data_path: {tmp_path}}}}}"
    data = ["data.names=[toy]", sets]
    training = [*data, "data.workers=0", "data.image.min_pixels=4096", "data.image.max_pixels=4096", "dtype=float32"]
    training += ["data.prompt=direct", "optimizer.learning_rate=0.01"]
    mesh = ["mesh.fsdp=2", "mesh.expert=2", "mesh.tensor=2"] if family == "qwen3_vl_moe" else ["mesh.tensor=2"]
    folder = checkpoint(family)
    videoauto("sft", f"model={folder}", "output=sft", "steps=1", "rows=4", "questions=1", *mesh, *training)
    rollout = ["rollout.branches=2", "rollout.max_new_tokens=4", "rounds=1", "prompts=4", "updates=1"]
    videoauto("train", "model=sft/model", "output=grpo", *rollout, *mesh, *training)
    videoauto("export", "sft", "out")
    before, after = tensors_of(folder), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys() == tensors_of(tmp_path / "grpo" / "model").keys()
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert not any("visual." in key and "merger" not in key for key in changed)
    assert any("merger" in key for key in changed) and any("layers.0" in key for key in changed)
    small = ["image_budget.max_pixels=4096", "max_new_tokens=4", "dtype=float32"]
    assert "tokens" in videoauto("ask", "0.png", "Which colour?", "model=out", "mode=second", *small)
    videoauto("eval", "model=out", "output=eval", *data, "sampling.max_new_tokens=4", "dtype=float32")
    assert any((tmp_path / "eval").iterdir())
