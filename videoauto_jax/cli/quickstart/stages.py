"""The stages of the quickstart, each of which a second start continues or skips."""

import dataclasses
import json
import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import rich

from videoauto_jax.cli import ask, export
from videoauto_jax.cli.progress import Report, progress_bar
from videoauto_jax.cli.quickstart.bars import bars
from videoauto_jax.cli.quickstart.tiny import make_checkpoint
from videoauto_jax.cli.quickstart.tokenizer import world_texts
from videoauto_jax.cli.quickstart.world import data_sets, make_world
from videoauto_jax.config import changes, load_config
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.report import QuickstartReport, picture, quickstart_report, write_report
from videoauto_jax.eval.runner import evaluate, read_records
from videoauto_jax.files import read_jsonl, write_atomic, write_json
from videoauto_jax.protocol import BOXED_SUFFIX
from videoauto_jax.train.loop import train_grpo
from videoauto_jax.train.recipe import GRPOConfig, SFTConfig
from videoauto_jax.train.sft import train_sft

if TYPE_CHECKING:
    from videoauto_jax.cli.quickstart.verb import QuickstartConfig

# Stage that trains -> the type of its recipe, and the model that it starts from.
TRAINS = {
    "lamp": (SFTConfig, "base"),
    "look": (SFTConfig, "lamp/model"),
    "study": (SFTConfig, "look/model"),
    "warmup": (SFTConfig, "study/model"),
    "train": (GRPOConfig, "warmup/model"),
}
# Stage -> what its progress bar says.
STAGES = {
    "world": "making the video world",
    "model": "making a tiny Qwen3-VL",
    "lamp": "learning to look at one thing",
    "look": "learning to look at everything",
    "study": "studying careful answers",
    "warmup": "warming up on the answer-twice format",
    "eval_warmup": "evaluating the warm-up",
    "train": "training with GRPO",
    "eval_trained": "evaluating the trained model",
    "export": "exporting and asking",
}


def packaged(kind: type, name: str, config: "QuickstartConfig"):
    """A packaged recipe with the run's seed and the user's changes.

    Raises:
        ConfigError: a change that the recipe does not take.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in getattr(config, name).items()]
    return load_config(kind, f"quickstart/{name}", [*overrides, f"seed={config.seed}"])


def recipes(config: "QuickstartConfig") -> dict:
    """Every recipe of a run by name, so that a wrong one is told before anything is made."""
    kinds = {stage: kind for stage, (kind, _) in TRAINS.items()} | {"eval": EvalConfig}
    return {name: packaged(kind, name, config) for name, kind in kinds.items()}


class Quickstart:
    """Everything `videoauto quickstart` does.

    Args:
        config: the verb's configuration.
        folder: the run's folder.
    """

    def __init__(self, config: "QuickstartConfig", folder: Path):
        self.config, self.folder = config, folder
        self.world = folder / "world"
        self._clock = folder / "seconds.json"

    def run(self) -> dict:
        """Runs what is left of every stage, then writes `summary.json` and `report.html`; returns the summary."""
        acts = {
            "world": self._world,
            "model": self._model,
            **{stage: partial(self._learn, stage) for stage in TRAINS},
            "eval_warmup": partial(self._evaluate, "warmup"),
            "eval_trained": partial(self._evaluate, "train"),
            "export": self._export,
        }
        for number, (stage, text) in enumerate(STAGES.items(), 1):
            with progress_bar(f"[{number}/{len(STAGES)}] {text}") as progress:
                self._timed(stage, acts[stage], progress)
        started = time.perf_counter()
        summary = self._summary()
        self._report(summary)
        self._add_seconds("report", time.perf_counter() - started)
        summary["seconds"] = self._seconds()
        write_json(self.folder / "summary.json", summary)
        return summary

    def _world(self, progress: Report) -> None:
        make_world(self.world, self.config.seed, self.config.world, report=lambda n, total: progress(n, total, {}))

    def _model(self, progress: Report) -> None:
        if not (self.folder / "base" / "config.json").exists():
            make_checkpoint(self.folder / "base", world_texts(self.world), self.config.seed, self.config.model)
        progress(1, 1, {})

    def _learn(self, stage: str, progress: Report) -> None:
        """One of the stages that train. If SIGTERM stops it, everything stops here, and the same command goes on."""
        kind, model = TRAINS[stage]
        learn = train_sft if kind is SFTConfig else train_grpo
        if not learn(self._recipe(kind, stage, stage, model=model), progress=progress, lines=False):
            raise KeyboardInterrupt

    def _evaluate(self, run: str, progress: Report) -> None:
        evaluate(self._eval_recipe(run), progress=progress)

    def _export(self, progress: Report) -> None:
        if not (self.folder / "model" / "config.json").exists():
            export.run(export.ExportConfig(str(self.folder / "train"), str(self.folder / "model")), force=True)
        recipe = self._eval_recipe("train")
        # A question that needs counting, if the world asks one; in any case about a video.
        sample = min(recipe.data.samples(), key=lambda s: ("count" not in s.tags, not str(s.media).endswith(".mp4")))
        question = sample.messages[-1]["content"][-1]["text"].removesuffix(BOXED_SUFFIX)  # `ask` appends it
        asked = ask.AskConfig(
            str(self.folder / "model"),
            sample.media,
            question,
            threshold=recipe.sampling.threshold,
            max_new_tokens=recipe.sampling.max_new_tokens,
            video_budget=recipe.data.video,
            dtype="float32",
        )
        command = shlex.join(["videoauto", "ask", *changes(asked)])
        rich.get_console().print(f"\n{command}\n(the right answer is {sample.answer})", style="dim", soft_wrap=True)
        ask.run(asked, force=False)
        progress(1, 1, {})

    def _eval_recipe(self, run: str) -> EvalConfig:
        return self._recipe(EvalConfig, "eval", "heldout", model=f"{run}/model", output=f"eval_{run}")

    def _recipe(self, kind: type, name: str, split: str, *, model: str, output: str | None = None):
        """A recipe with this run's folders and data."""
        recipe, sets = packaged(kind, name, self.config), data_sets(self.world, split)
        return dataclasses.replace(
            recipe,
            model=str(self.folder / model),
            output=str(self.folder / (output or name)),
            data=dataclasses.replace(recipe.data, sets=sets, names=tuple(sets)),
        )

    def _summary(self) -> dict:
        threshold = self._eval_recipe("train").sampling.threshold
        scores = {
            stage: json.loads((self.folder / f"eval_{run}" / "summary.json").read_text())["eval"]
            for stage, run in (("warmup", "warmup"), ("trained", "train"))
        }
        seconds = self._seconds()
        return {
            "seed": self.config.seed,
            "seconds": seconds,
            "threshold": threshold,
            "eval": scores,
            "bars": bars(scores, sum(seconds.values())),
        }

    def _report(self, summary: dict) -> None:
        data = QuickstartReport(
            seed=summary["seed"],
            threshold=summary["threshold"],
            seconds=summary["seconds"],
            scores=summary["eval"],
            bars=summary["bars"],
            sft_metrics=[line for run in ("lamp", "look", "study", "warmup") for line in self._metrics(run)],
            grpo_metrics=self._metrics("train"),
            records=read_records(self.folder / "eval_train"),
        )
        write_report(self.folder, quickstart_report(data))
        write_atomic(self.folder / "report.png", picture(data))

    def _metrics(self, run: str) -> list[dict]:
        return read_jsonl(self.folder / run / "metrics.jsonl")

    def _timed(self, stage: str, act: Callable[[Report], None], progress: Report) -> None:
        started = time.perf_counter()
        try:
            act(progress)
        finally:
            self._add_seconds(stage, time.perf_counter() - started)

    def _add_seconds(self, stage: str, seconds: float) -> None:
        """An interrupted stage counts with all its starts; one that was done already adds next to nothing."""
        known = self._seconds()
        write_json(self._clock, known | {stage: known.get(stage, 0.0) + seconds})

    def _seconds(self) -> dict[str, float]:
        return json.loads(self._clock.read_text()) if self._clock.exists() else {}
