"""Metrics add up exactly however a step was split, and the logger survives what runs meet."""

import io
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from videoauto_jax.errors import UsageError
from videoauto_jax.train.metrics import Metrics, MetricsLogger, merge, reduction


def _steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def _logger(folder, **options):
    return MetricsLogger(folder, console=Console(file=io.StringIO(), width=200), **options)


def test_mean_over_unequal_parts_is_the_mean_of_the_whole():
    values = np.random.default_rng(0).normal(size=20)
    metrics = Metrics()
    for part in np.split(values, [3, 4, 15]):
        metrics.add({"kl": (jnp.float32(part.sum()), jnp.float32(part.size))})
    np.testing.assert_allclose(metrics.values()["kl"], values.mean(), rtol=1e-6)


def test_minimum_and_maximum_keep_the_extreme_part():
    metrics = Metrics()
    for low, high, count in ((0, 0, 0), (4, 1, 8), (1, 6, 8), (0, 0, 0), (3, 5, 5)):
        metrics.add({"clip_ratio/low_min": (low, count), "clip_ratio/high_max": (high, count)})
    assert metrics.values() == {"clip_ratio/low_min": 1 / 8, "clip_ratio/high_max": 1.0}


def test_latest_value_wins_where_the_metric_is_a_position():
    metrics = Metrics()
    for rate in (1e-6, 5e-7):
        metrics.add({"learning_rate": rate, "loss": rate})
    assert metrics.values() == {"learning_rate": 5e-7, "loss": 7.5e-7}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("completions/min_length", "min"),
        ("completions/max_length", "max"),
        ("clip_ratio/low_min", "min"),
        ("maximum/loss", "mean"),
        ("minutes", "mean"),
        ("num_tokens", "latest"),
    ],
)
def test_reduction_follows_the_name(name, kind):
    assert reduction(name) == kind


def test_merging_inside_a_compiled_function_is_the_same():
    a = {"kl": (1.0, 2.0), "clip_ratio/low_min": (1.0, 4.0), "only/a": (1.0, 1.0)}
    b = {"kl": (5.0, 3.0), "clip_ratio/low_min": (1.0, 8.0), "only/b": (2.0, 1.0)}
    compiled = jax.jit(lambda x, y: merge(x, y, where=jnp.where))(a, b)
    assert jax.tree.map(float, compiled) == jax.tree.map(float, merge(a, b))
    assert merge(a, b)["kl"] == (6.0, 5.0)


def test_nothing_counted_is_nan_and_null(tmp_path):
    with _logger(tmp_path, tensorboard=False) as logger:
        logger.log(1, {"kl": (0.0, 0.0), "loss": 2.0})
    (record,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert record["kl"] is None and record["loss"] == 2.0


def test_rewind_drops_later_steps_everywhere(tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    with _logger(tmp_path) as logger:
        for step in (1, 2, 3, 4):
            logger.log(step, {"loss": float(step)})
    with _logger(tmp_path) as logger:
        logger.rewind(2)
        logger.log(3, {"loss": 30.0})
    assert _steps(tmp_path / "metrics.jsonl") == [1, 2, 3]
    files = sorted((tmp_path / "tensorboard").iterdir(), key=lambda file: file.name.rsplit(".", 1)[-1])
    events = [[Event.FromString(record) for record in _records(file)] for file in files]
    assert [event.step for event in events[0] if event.HasField("summary")] == [1, 2, 3, 4]
    starts = [event for event in events[1] if event.session_log.status == SessionLog.START]
    assert [event.step for event in starts] == [3]


def _records(file):
    """Records of a TFRecord file: length (8 bytes), its checksum (4), the data, its checksum (4)."""
    data, place = file.read_bytes(), 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 8], "little")
        yield data[place + 12 : place + 12 + size]
        place += size + 16


def test_a_torn_line_is_removed(tmp_path):
    with _logger(tmp_path, tensorboard=False) as logger:
        logger.log(1, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with _logger(tmp_path, tensorboard=False) as logger:
        logger.log(2, {"loss": 2.0})
    assert _steps(tmp_path / "metrics.jsonl") == [1, 2]


def test_a_full_disk_is_reported_once_and_does_not_end_the_run(tmp_path):
    logger = _logger(tmp_path, tensorboard=False)
    logger.log(1, {"loss": 1.0})
    writer = next(writer for writer in logger._writers if hasattr(writer, "_file"))
    whole, writer._file = writer._file, _FullDisk(writer._file)
    logger.log(2, {"loss": 2.0})
    logger.log(3, {"loss": 3.0})
    writer._file = whole
    logger.log(4, {"loss": 4.0})
    logger.close()
    assert _steps(tmp_path / "metrics.jsonl") == [1, 4]
    assert logger._console.file.getvalue().count("were not written") == 1


class _FullDisk:
    """Takes half of a line, as a disk does that fills up."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, line):
        return self._file.write(line[: len(line) // 2])


def test_console_shows_the_headline(tmp_path):
    with _logger(tmp_path, tensorboard=False) as logger:
        logger.log(7, {"loss": 0.25, "reward": (9.0, 4.0), "internal/thing": 3.0})
    shown = logger._console.file.getvalue()
    assert "step      7" in shown and "loss 0.25" in shown and "reward 2.25" in shown and "thing" not in shown


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UsageError, match="run"):
        MetricsLogger(tmp_path / "run")


def test_wandb_gets_finite_numbers_once(tmp_path, monkeypatch):
    logged = []
    run = types.SimpleNamespace(step=0, log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    started = {}
    fake = types.SimpleNamespace(init=lambda **options: started.update(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with MetricsLogger(tmp_path / "run", False, lines=False, wandb="project") as logger:
        logger.rewind(0)
        logger.log(1, {"loss": 2.0, "bad": float("nan")})
    assert logged == [(1, {"loss": 2.0})] and started["project"] == "project" and started["resume"] == "allow"
    run.step = 4  # what wandb has of an earlier start, which went further than its last checkpoint
    with MetricsLogger(tmp_path / "run", False, lines=False, wandb="project") as logger:
        logger.rewind(1)
        for step in (2, 3, 4):
            logger.log(step, {"loss": float(step)})
    assert [step for step, _ in logged] == [1, 4]


def test_missing_wandb_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="pip install wandb"):
        MetricsLogger(tmp_path, False, wandb="project")
