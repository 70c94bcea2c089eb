"""The plug-in against the interface that lmms-eval 0.7 documents, and against the package itself where there is one."""

import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import types
from importlib.metadata import entry_points

import numpy as np
import pytest

from videoauto_jax.data.recipe import DataConfig
from videoauto_jax.errors import DataError, MediaError
from videoauto_jax.sampling.answer import FINISH_REASONS, make_answer


class Base:
    """What stands for `lmms_eval.api.model.lmms`."""

    def __init__(self):
        self.task_dict = {}


@dataclasses.dataclass
class Request:
    args: tuple


@pytest.fixture
def plugin(monkeypatch):
    """The module of the model, on the real base class if lmms-eval is installed."""
    if importlib.util.find_spec("lmms_eval") is None:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["lmms_eval.api.model"].lmms = Base
    monkeypatch.delitem(sys.modules, "videoauto_jax.eval.lmms_model", raising=False)
    module = importlib.import_module("videoauto_jax.eval.lmms_model")
    yield module
    sys.modules.pop("videoauto_jax.eval.lmms_model", None)


class Script:
    """Processor and model: the second question is sure of its first answer."""

    def __init__(self):
        self.asked, self.broken = [], False

    def encode(self, messages):
        if self.broken:
            raise MediaError("cannot decode", where="v.mp4")
        self.asked.append(messages)
        return types.SimpleNamespace(token_ids=(0,) * 4)

    def stream(self, prompts, sampling):
        self.limits = [*getattr(self, "limits", []), sampling.max_new_tokens]
        for position, _ in enumerate(prompts):
            sure = position == 1
            text = r"\boxed{A}" if sure else r"\boxed{A}<think>so</think>\boxed{B}"
            values = (np.zeros(9, np.int32), np.zeros(9, np.float32), np.zeros(9, np.float32))
            yield position, make_answer(text, *values, 0.9, FINISH_REASONS.index("exit" if sure else "stop"), 4)


@pytest.fixture
def model(plugin, monkeypatch):
    script = Script()
    monkeypatch.setattr(DataConfig, "processor", lambda data, model: script)
    monkeypatch.setattr(plugin, "ModelAnswerer", lambda config, processor: script)
    made = plugin.VideoAutoJax("folder", batch_size=2, sampling__threshold="0.5")
    made.task_dict = {"videomme": {"test": ["v1.mp4", "v2.mp4"]}}
    made.script = script
    return made


def ask(model, **options):
    parts = lambda path: [{"type": "video", "url": path}, {"type": "text", "text": "Q?"}]  # noqa: E731
    to_messages = lambda path: [{"role": "user", "content": parts(path)}]  # noqa: E731
    requests = [Request(("ctx", to_messages, {"max_new_tokens": 16, **options}, n, "videomme", "test")) for n in (0, 1)]
    return model.generate_until(requests)


def test_requests_become_prompts_and_answers_texts(model):
    assert ask(model) == [r"\boxed{B}", r"\boxed{A}"]
    system, user = model.script.asked[0]
    assert system["content"].startswith("You are a helpful assistant.\nFIRST")
    assert user["content"][0] | {"max_frames": 2048, "total_pixels": 128000 * 1024} == user["content"][0]
    assert model.script.limits == [4096]  # a thought needs more than the task allows


def test_a_damaged_video_ends_the_run_with_its_reason(model):
    model.script.broken = True
    with pytest.raises(DataError, match="2 requests have no prompt.*cannot decode"):
        ask(model)


def test_the_entry_point_names_the_class():
    found = [point.value for point in entry_points(group="lmms_eval.models") if point.name == "videoauto_jax"]
    if not found:
        pytest.skip("the package was installed before this entry point existed")
    assert found == ["videoauto_jax.eval.lmms_eval:manifest"]


def test_lmms_eval_finds_the_model(plugin):
    registry = pytest.importorskip("lmms_eval.models.registry_v2", reason="needs lmms-eval")
    from videoauto_jax.eval.lmms_eval import manifest

    models = registry.ModelRegistryV2()
    models.register_manifest(manifest())
    assert models.get_model_class("videoauto_jax") is plugin.VideoAutoJax


def test_a_whole_run_inside_lmms_eval(tiny_folder, benchmark_root, tmp_path):
    """The harness loads a task, asks the model that it finds by the entry point, and scores."""
    pytest.importorskip("lmms_eval.evaluator", reason="needs lmms-eval with all it depends on")
    clip = str(benchmark_root / "clip.mp4")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"n": n, "clip": clip}) + "\n" for n in range(3)))
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mini.yaml").write_text(TASK.replace("ROWS", str(tmp_path / "rows.jsonl")))
    (tmp_path / "task" / "utils.py").write_text(FUNCTIONS)
    sizes = "data__video__max_frames=4,data__video__max_pixels=16384,sampling__max_new_tokens=8,dtype=float32"
    options = {"tasks": "mini", "batch_size": "2", "include_path": tmp_path / "task", "output_path": tmp_path / "out",
               "model_args": f"model={tiny_folder},recipe=eval/qwen3_vl_auto_128k,{sizes}"}  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "lmms_eval", "--model", "videoauto_jax", *words]
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert process.returncode == 0, process.stderr[-2000:]
    result = json.loads(next((tmp_path / "out").rglob("*_results.json")).read_text())
    assert result["results"]["mini"]["asked,none"] == 1.0


TASK = """
task: mini
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_messages: !function utils.messages
doc_to_target: n
generation_kwargs: {max_new_tokens: 8}
process_results: !function utils.results
metric_list: [{metric: asked, aggregation: mean, higher_is_better: true}]
"""
FUNCTIONS = """
visual = lambda row: [row["clip"]]
text = lambda row, kwargs=None: "What is it?"
parts = lambda row: [{"type": "video", "url": row["clip"]}, {"type": "text", "text": text(row)}]
messages = lambda row, kwargs=None: [{"role": "user", "content": parts(row)}]
results = lambda row, said: {"asked": float(isinstance(said[0], str))}
"""
