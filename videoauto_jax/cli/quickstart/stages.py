"""The stages of the quickstart, each of which a second start continues or skips."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import rich

from videoauto_jax.cli import ask, export
from videoauto_jax.cli.progress import Report, progress_bar
from videoauto_jax.cli.quickstart.bars import bars
from videoauto_jax.cli.quickstart.tiny import make_checkpoint
from videoauto_jax.cli.quickstart.tokenizer import world_texts
from videoauto_jax.cli.quickstart.world import data_sets, make_world
from videoauto_jax.config import load_config
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.report import QuickstartReport, picture, quickstart_report, write_report
from videoauto_jax.eval.runner import evaluate, read_records
from videoauto_jax.files import read_jsonl, write_atomic, write_json
from videoauto_jax.train.loop import train_grpo
from videoauto_jax.train.recipe import GRPOConfig, SFTConfig
from videoauto_jax.train.sft import train_sft

if TYPE_CHECKING:
    from videoauto_jax.cli.quickstart.verb import QuickstartConfig

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
        for number, (stage, text) in enumerate(STAGES.items(), 1):
            with progress_bar(f"[{number}/{len(STAGES)}] {text}") as progress:
                self._timed(stage, getattr(self, f"_{stage}"), progress)
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

    def _lamp(self, progress: Report) -> None:
        self._teach("lamp", "base", progress)

    def _look(self, progress: Report) -> None:
        self._teach("look", "lamp/model", progress)

    def _study(self, progress: Report) -> None:
        self._teach("study", "look/model", progress)

    def _warmup(self, progress: Report) -> None:
        self._teach("warmup", "study/model", progress)

    def _teach(self, stage: str, model: str, progress: Report) -> None:
        _go_on(train_sft(self._recipe(SFTConfig, stage, (stage,), model=model), progress=progress, lines=False))

    def _eval_warmup(self, progress: Report) -> None:
        self._evaluate("warmup", progress)

    def _train(self, progress: Report) -> None:
        recipe = self._recipe(GRPOConfig, "train", ("train",), model="warmup/model")
        _go_on(train_grpo(recipe, progress=progress, lines=False))

    def _eval_trained(self, progress: Report) -> None:
        self._evaluate("train", progress)

    def _export(self, progress: Report) -> None:
        if not (self.folder / "model" / "config.json").exists():
            export.run(export.ExportConfig(str(self.folder / "train"), str(self.folder / "model")), force=True)
        recipe = self._eval_recipe("train")
        # A question that needs counting, if the world asks one; in any case about a video.
        sample = min(recipe.data.samples(), key=lambda s: ("count" not in s.tags, not str(s.media).endswith(".mp4")))
        question = sample.messages[-1]["content"][-1]["text"]
        rich.print(f"\n[dim]videoauto ask {sample.media} {question!r}[/] (the right answer is {sample.answer})")
        asked = ask.AskConfig(
            str(self.folder / "model"),
            sample.media,
            question,
            threshold=recipe.sampling.threshold,
            max_new_tokens=recipe.sampling.max_new_tokens,
            video_budget=recipe.data.video,
            dtype="float32",
        )
        ask.run(asked, force=False)
        progress(1, 1, {})

    def _evaluate(self, run: str, progress: Report) -> None:
        evaluate(self._eval_recipe(run), progress=progress)

    def _eval_recipe(self, run: str) -> EvalConfig:
        return self._recipe(EvalConfig, "eval", ("heldout",), model=f"{run}/model", output=f"eval_{run}")

    def _recipe(self, kind: type, name: str, splits: tuple[str, ...], *, model: str, output: str | None = None):
        """A packaged recipe with this run's folders, data, seed and the user's changes."""
        changes = [f"{key}={json.dumps(value)}" for key, value in getattr(self.config, name).items()]
        recipe = load_config(kind, f"quickstart/{name}", [*changes, f"seed={self.config.seed}"])
        sets = {name: config for split in splits for name, config in data_sets(self.world, split).items()}
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


def _go_on(ended: bool) -> None:
    """Stops here if SIGTERM has stopped a stage; the same command goes on with it."""
    if not ended:
        raise KeyboardInterrupt
