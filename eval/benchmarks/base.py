"""What a benchmark is, and the register of those there are.

A benchmark reads rows of a published data set, asks, and scores: `extract` finds the answer in a text, `score` judges
it against a row, `aggregate` turns scores into the published metrics. What a score needs of a row is kept in the
evaluation's records (`keep`), so scores are computed again without the data set and without the model.
"""

import abc
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from videoauto_jax.errors import ConfigError
from videoauto_jax.protocol.grammar import Profile, check_profile, last_box_or_text

Row = Mapping[str, Any]
Metrics = dict[str, float | None]
TASK = "subtask"
"""Key under which a row knows the sub-task (the data set's config) it belongs to."""

POST_BOXED = "Put your final answer in \\boxed{}."
MODELS = ("Qwen2.5-VL-7B", "VideoAuto-R1-7B", "Qwen3-VL-8B", "VideoAuto-R1-8B")
"""Whose results `published` holds (paper, tables 3 and 4)."""


class Score(float):
    """A number, with what its aggregation needs beside it.

    Attributes:
        prediction: what was extracted.
        iou: overlap of the located segment, None where none was asked for.
        counted: whether it counts; as published, some benchmarks drop answers they find empty.
        groups: kind of category -> category.
        unit: what it belongs to, where several answers count as one.
    """

    prediction: str
    iou: float | None
    counted: bool
    groups: Mapping[str, str]
    unit: str

    def __new__(
        cls,
        value: float,
        *,
        prediction: str = "",
        iou: float | None = None,
        counted: bool = True,
        groups: Mapping[str, str] | None = None,
        unit: str = "",
    ):
        score = super().__new__(cls, value)
        score.prediction, score.iou, score.counted = prediction, iou, counted
        score.groups, score.unit = dict(groups or {}), unit
        return score


class Benchmark(abc.ABC):
    """A benchmark under one profile and one form of its prompt.

    Attributes:
        name: as recipes write it.
        title: as tables write it.
        repo, split, revision: the data set on the Hugging Face hub.
        folder: where it lies below the recipe's `root`, as published.
        tasks: its sub-tasks, configs of the data set; ("",) where there are none.
        columns: what every row has to have.
        keep: the columns that scores and categories need.
        problem_type: kind of its answers: `exact_match`, `iou` or `gqa`.
        headline: the metric that tables show.
        percent: factor that makes it a percentage.
        published: model -> headline in percent.
        plain_tokens: tokens a baseline that is asked plainly may write.
        begun: what the response begins with, as part of the prompt, where a box is asked for.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    repo: ClassVar[str]
    split: ClassVar[str] = "test"
    revision: ClassVar[str | None] = None
    folder: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ("",)
    columns: ClassVar[tuple[str, ...]]
    keep: ClassVar[tuple[str, ...]]
    problem_type: ClassVar[str] = "exact_match"
    headline: ClassVar[str] = "accuracy"
    percent: ClassVar[float] = 1.0
    published: ClassVar[Mapping[str, float]] = {}
    plain_tokens: ClassVar[int] = 16
    begun: ClassVar[str] = ""

    def __init__(self, profile: Profile = "paper", *, boxed: bool = True):
        """
        Args:
            profile: `paper` scores as published, `strict` with the faults mended.
            boxed: ask for the answer in a box, as VideoAuto-R1 is asked, or plainly, as the baselines are.

        Raises:
            UsageError: there is no such profile.
        """
        self.profile, self.boxed = check_profile(profile), boxed

    @abc.abstractmethod
    def question(self, row: Row) -> str:
        """The user's text."""

    @abc.abstractmethod
    def media(self, row: Row) -> tuple[str, ...]:
        """Where the video may lie, relative to the benchmark's folder; the first that exists is taken."""

    def image(self, row: Row) -> object | None:
        """A picture shown after the video: bytes, a path, or none."""
        return None

    def image_mark(self) -> str:
        """A pattern for what the picture takes the place of in the question; "" where it stands before the question."""
        return ""

    @abc.abstractmethod
    def truth(self, row: Row) -> object:
        """The right answer, for people to read and for records to keep."""

    def unit(self, row: Row) -> str:
        """What a row belongs to, where several answers count as one; "" where each counts by itself."""
        return ""

    def groups(self, row: Row) -> dict[str, str]:
        """Kind of category -> this row's category."""
        return {}

    @abc.abstractmethod
    def extract(self, text: str) -> str:
        """The answer in a text. "" where there is none."""

    @abc.abstractmethod
    def score(self, record: Row, text: str) -> Score:
        """Judges a text against a row of the data set (of which the columns `keep` are enough)."""

    @abc.abstractmethod
    def aggregate(self, scores: Sequence[float]) -> Metrics:
        """The published metrics under their published names and in their units; None where nothing counts."""

    def breakdown(self, scores: Sequence[Score]) -> dict[str, dict[str, dict[str, float | int | None]]]:
        """`{kind of category: {category: {"score", "n"}}}`, the headline in percent."""
        found: dict[str, dict[str, list[Score]]] = {}
        for score in scores:
            for kind, value in score.groups.items():
                found.setdefault(kind, {}).setdefault(value, []).append(score)
        return {
            kind: {value: {"score": self.headline_of(part), "n": len(part)} for value, part in sorted(parts.items())}
            for kind, parts in found.items()
        }

    def headline_of(self, scores: Sequence[float]) -> float | None:
        """The headline in percent."""
        value = self.aggregate(scores)[self.headline]
        return None if value is None else value * self.percent

    def boxed_text(self, text: str) -> str:
        """What a text says: its last box if a box was asked for and there is one, else all of it."""
        text = text.strip()
        return last_box_or_text(text, self.profile) if self.boxed else text


Kind = TypeVar("Kind", bound=type[Benchmark])
_KNOWN: dict[str, type[Benchmark]] = {}


def register(kind: Kind) -> Kind:
    """Makes a benchmark known under its name.

    Raises:
        ConfigError: the name is taken.
    """
    if _KNOWN.get(kind.name, kind) is not kind:
        raise ConfigError(f"a benchmark named '{kind.name}' exists already", fix="Choose another name")
    _KNOWN[kind.name] = kind
    return kind


def known_benchmarks() -> list[str]:
    """Names of all benchmarks."""
    return sorted(_KNOWN)


def benchmark(name: str, profile: Profile = "paper", *, boxed: bool = True) -> Benchmark:
    """The benchmark of a name: `.extract(text)`, `.score(record, text)`, `.aggregate(scores)`.

    Raises:
        ConfigError: there is none of this name; tells the nearest.
        UsageError: there is no such profile.
    """
    if name in _KNOWN:
        return _KNOWN[name](profile, boxed=boxed)
    titles = {kind.title.casefold(): kind.name for kind in _KNOWN.values()} | {known: known for known in _KNOWN}
    near = difflib.get_close_matches(name.casefold(), titles, n=3, cutoff=0.5)
    names = list(dict.fromkeys(titles[match] for match in near))
    fix = f"Did you mean {' or '.join(names)}?" if names else f"Known: {', '.join(known_benchmarks())}"
    raise ConfigError(f"there is no benchmark '{name}'", where="benchmarks", fix=fix)


def mean(values: Sequence[float]) -> float | None:
    """The arithmetic mean; None of nothing."""
    return sum(values) / len(values) if len(values) else None


def percentage(values: Sequence[float]) -> float | None:
    """The mean in percent, rounded as the published code rounds: once, after the division."""
    return 100 * sum(values) / len(values) if len(values) else None


def counted(scores: Sequence[float]) -> list[float]:
    """The scores that count."""
    return [score for score in scores if getattr(score, "counted", True)]


def by_group(scores: Sequence[float], kind: str) -> dict[str, list[float]]:
    """Scores by a kind of category; plain numbers are all of one."""
    parts: dict[str, list[float]] = {}
    for score in scores:
        parts.setdefault(getattr(score, "groups", {}).get(kind, ""), []).append(score)
    return parts


def results(*values: float) -> dict[str, float]:
    """Published results by model, in the order of `MODELS`."""
    return dict(zip(MODELS, values, strict=True))
