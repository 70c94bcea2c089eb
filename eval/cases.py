"""What is asked: the samples of data sets and of benchmarks, in one list."""

import dataclasses
import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from videoauto_jax.data.annotations import Origin, Record, Sample
from videoauto_jax.errors import ConfigError, DataError
from videoauto_jax.eval.annotations import read_rows
from videoauto_jax.eval.benchmarks.base import TASK, Benchmark, benchmark
from videoauto_jax.eval.config import BenchmarkConfig, EvalConfig
from videoauto_jax.protocol.prompts import system_prompt
from videoauto_jax.rewards import require_graders


@dataclasses.dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
        sample: its prompt and its truth.
        benchmark: what judges it; None where the sample's problem type does.
        row: what the benchmark needs of the published row.
    """

    sample: Sample
    benchmark: Benchmark | None = None
    row: Mapping[str, object] = dataclasses.field(default_factory=dict)


def load_cases(config: EvalConfig) -> list[Case]:
    """Every question of an evaluation, the data sets' first, then benchmark after benchmark.

    Raises:
        ConfigError: nothing is named; an unknown benchmark or sub-task.
        DataError: annotations that cannot be used, or nothing in them.
    """
    chosen = [_chosen(config, name) for name in config.asked]
    found: list[Case] = []
    if config.data.names or not chosen:
        samples = config.data.samples(config.prompt_variant, keep_missing=True)
        found += [Case(sample) for sample in choose(samples, config.limit, config.seed)]
        require_graders((case.sample.problem_type, case.sample.id) for case in found)
        _check_some(found, ", ".join(config.data.names))
    for one in chosen:
        cases = _read(config, one)
        _check_some(cases, one.name)
        found += choose(cases, config.limit, config.seed, _unit)
    return found


def _check_some(cases: Sequence[Case], where: str) -> None:
    if not cases:
        fix = "Check the annotations, and the filters tasks, only and limit"
        raise DataError("there is not one sample", where=where, fix=fix)


def choose(items: Sequence, limit: int | None, seed: int, unit: Callable[..., Hashable] = id) -> list:
    """`limit` items drawn by `seed`, in their order; all of them where `limit` is None or larger.

    Args:
        unit: items of the same one are drawn together, so that there may be more of them than `limit`.
    """
    if limit is None or limit >= len(items):
        return list(items)
    units: dict[Hashable, list[int]] = {}
    for place, item in enumerate(items):
        units.setdefault(unit(item), []).append(place)
    places, drawn = list(units.values()), []
    for which in np.random.default_rng(seed).choice(len(places), min(limit, len(places)), replace=False):
        if len(drawn) < limit:
            drawn += places[which]
    return [items[place] for place in sorted(drawn)]


def missing_media(cases: Sequence[Case]) -> set[str]:
    """Ids of the cases whose file does not exist."""
    paths = {case.sample.media for case in cases} - {None}
    # Thousands of look-ups on a network file system: latency, not work, so threads.
    with ThreadPoolExecutor(16) as pool:
        there = dict(zip(paths, pool.map(os.path.exists, paths)))
    return {case.sample.id for case in cases if not there.get(case.sample.media, True)}


def beside_each_other(cases: Sequence[Case]) -> list[Case]:
    """The same cases, those about one video side by side: it is decoded and computed once for all of them."""
    return [case for _, case in sorted(zip(_videos(cases), cases), key=lambda numbered: numbered[0])]


def part_of(cases: Sequence[Case], part: tuple[int, int] | None) -> list[Case]:
    """The cases of a part; whole videos are dealt to the parts in turn."""
    if part is None:
        return list(cases)
    return [case for video, case in zip(_videos(cases), cases) if video % part[1] == part[0]]


def benchmark_of(config: EvalConfig, name: str) -> Benchmark:
    """A benchmark as this evaluation asks and judges it."""
    return benchmark(name, config.profile, boxed=config.boxed(name))


def _chosen(config: EvalConfig, name: str) -> Benchmark:
    found = benchmark_of(config, name)
    wanted = config.benchmarks.get(name, BenchmarkConfig()).tasks
    unknown = [task for task in wanted if task not in found.tasks]
    if unknown:
        fix = f"It has {', '.join(filter(None, found.tasks)) or 'no sub-tasks'}"
        raise ConfigError(f"{found.title} has no sub-task '{unknown[0]}'", where=f"benchmarks.{name}.tasks", fix=fix)
    return found


def _read(config: EvalConfig, chosen: Benchmark) -> list[Case]:
    own = config.benchmarks.get(chosen.name, BenchmarkConfig())
    folder = Path(own.path or Path(config.root or ".") / chosen.folder)
    rows = read_rows(chosen, own.annotations or folder, own.tasks or chosen.tasks)
    video = config.data.video
    if own.max_frames is not None:
        video = dataclasses.replace(video, max_frames=own.max_frames)
    system = system_prompt(config.data.prompt, variant=config.prompt_variant)
    origin = Origin(chosen.name, system, str(folder), config.data.image, video)
    return [_case(chosen, row, key, origin) for key, row in rows]


def _case(chosen: Benchmark, row: dict, key: str, origin: Origin) -> Case:
    record = Record(row, f"{chosen.name}, row {key}", key, row.get(TASK, ""), origin)
    try:
        _check_row(row)
        places = chosen.media(row)
        question, truth, groups = chosen.question(row), chosen.truth(row), chosen.groups(row)
        _check_truth(truth)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, SyntaxError) as error:
        what = f"{chosen.title}: a row is not as published: {type(error).__name__}: {error}"
        raise DataError(what, where=record.where, fix=f"Compare it with {chosen.repo}") from error
    # Where there is one place only, `missing_media` looks, and for all cases at once.
    visual = record.video(places[0] if len(places) == 1 else _first_there(places, origin.data_path))
    question = question.replace("<image>", "")  # as published: some models take it for a picture of their own
    sample = record.sample(question, truth, chosen.problem_type, visual, grounding=True)
    kept = {name: row[name] for name in (*chosen.keep, TASK) if name in row}
    tags = tuple(dict.fromkeys(groups.values()))
    messages = _with_image(sample, chosen.image(row), chosen.image_mark(), origin)
    if chosen.boxed and chosen.begun:
        messages = [*messages, {"role": "assistant", "content": chosen.begun}]
    return Case(dataclasses.replace(sample, messages=messages, tags=tags), chosen, kept)


def _check_row(row: Mapping) -> None:
    """Raises ValueError where what is asked would be of nothing, or of a text's characters."""
    for name in ("question", "caption", "answer"):
        if name in row and row[name] is None:
            raise ValueError(f"its {name} is null")
    if isinstance(row.get("options"), str):
        raise ValueError("its options are a text, not a list")


def _check_truth(truth: object) -> None:
    """Raises ValueError on an answer that no response could give, or that everything unreadable would."""
    letter, spans = (truth["answer"], truth["segment"]) if isinstance(truth, Mapping) else (truth, None)
    if letter == "":
        raise ValueError("its answer is none of its options")
    if not isinstance(letter, str | list):
        raise ValueError(f"its answer {letter!r} is not a text")
    if isinstance(letter, list):
        spans = [letter]
    if spans is not None and not (spans and all(len(span) == 2 for span in spans)):
        raise ValueError(f"its segments {spans} are not [start, end]")


def _unit(case: Case) -> Hashable:
    unit = case.benchmark.unit(case.row)
    return (case.row.get(TASK), unit) if unit else case.sample.id


def _first_there(places: Sequence[str], folder: str) -> str:
    """The first place that exists, else the first."""
    return next((place for place in places if os.path.exists(os.path.join(folder, place))), places[0])


def _with_image(sample: Sample, image: object, mark: str, origin: Origin) -> list[dict]:
    """The messages with a picture wherever the question has the mark, or before the question if there is none."""
    if image is None:
        return sample.messages
    source = os.path.join(origin.data_path, image) if isinstance(image, str) else image
    part = {"type": "image", "image": source} | dataclasses.asdict(origin.image)
    *before, user = sample.messages
    video, text = user["content"]
    texts = re.split(mark, text["text"]) if mark else ["", text["text"]]
    parts = [piece for said in texts for piece in (part, text | {"text": said})][1:]
    return [*before, user | {"content": [video, *(piece for piece in parts if piece.get("text") != "")]}]


def _videos(cases: Sequence[Case]) -> list[int]:
    """The number of every case's video, counted as they first come; a case without one has a number of its own."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(case.sample.media or case.sample.id, len(numbers)) for case in cases]
