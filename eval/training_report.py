"""The page of a training run: its curves, its phases, and sample rollouts to read."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from videoauto_jax.eval.figures import curves
from videoauto_jax.eval.page import figure, fold, page, section, table
from videoauto_jax.eval.report import write_report
from videoauto_jax.files import read_jsonl

TRAINING_CURVES: tuple[tuple[str, dict[str, str]], ...] = (
    ("Reward", {"reward": "training", "eval/reward": "held out"}),
    ("Accuracy reward", {"rewards/accuracy_twice_boxed_reward1": "first answer",
                         "rewards/accuracy_twice_boxed_reward2": "final answer"}),
    ("Groups that teach nothing", {"frac_reward_zero_std": "share"}),
    ("Loss", {"loss": "loss"}),
    ("KL", {"kl": "to the reference", "rollout_kl": "sampler to trainer"}),
    ("Gradient norm", {"grad_norm": "before clipping"}),
    ("Response tokens", {"completions/mean_length": "mean length"}),
    ("Thinking", {"think_ratio": "think ratio", "fallback_ratio": "declines to guess"}),
    ("Held-out accuracy", {"eval/accuracy_1": "first", "eval/accuracy_2": "final", "eval/accuracy_auto": "auto"}),
)  # fmt: skip
SHOWN = 20
"""Sample rollouts on the page, the newest ones."""


def write_training_report(folder: str | Path) -> Path:
    """Writes `folder/report.html` from what a run has logged so far, and returns its path.

    Raises:
        DataError: the folder holds no metrics.
    """
    folder = Path(folder)
    samples = folder / "samples.jsonl"
    rollouts = read_jsonl(samples) if samples.exists() else []
    return write_report(folder, training_report(folder.name, read_jsonl(folder / "metrics.jsonl"), rollouts))


def training_report(name: str, metrics: Sequence[Mapping], rollouts: Sequence[Mapping]) -> str:
    """The page as HTML.

    Args:
        name: of the run.
        metrics: lines of metrics.jsonl.
        rollouts: lines of samples.jsonl.
    """
    drawn = figure("Training curves", curves(metrics, TRAINING_CURVES, "step"), columns=3)
    newest = list(reversed(rollouts[-SHOWN:]))
    read = [fold(f"Round {one['round']}: {one['id']}", _rollout(one), opened=one is newest[0]) for one in newest]
    sections = [
        section("Curves", "Faint lines are single steps, strong ones their running mean.", drawn),
        section("Phases", "Seconds of a step, mean and largest.", _phases(metrics)),
        section("Rollouts", "All branches of one prompt, the newest first.", *read),
    ]
    return page(f"Training: {name}", f"{len(metrics)} steps logged.", sections)


def _phases(metrics: Sequence[Mapping]) -> str:
    found: dict[str, list[float]] = {}
    for line in metrics:
        for name, value in line.items():
            if name.startswith("seconds/") and value is not None:
                found.setdefault(name.removeprefix("seconds/"), []).append(value)
    rows = [[escape(name), f"{sum(each) / len(each):.2f}", f"{max(each):.2f}"] for name, each in found.items()]
    return table(["phase", "mean", "largest"], rows) if rows else ""


def _rollout(one: Mapping) -> str:
    parts = one["question"]
    question = parts if isinstance(parts, str) else "\n".join(part["text"] for part in parts if "text" in part)
    rows = [
        [escape(branch["text"]), _number(branch["confidence"]), _number(branch["reward"])] for branch in one["branches"]
    ]
    asked = f'<p class="question">{escape(question)}</p><p class="note">Truth: {escape(str(one["truth"]))}</p>'
    return asked + table(["response", "confidence", "reward"], rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
