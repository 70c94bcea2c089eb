"""Evaluation: questions through the sampler, every answer written as it finishes, then the scores.

config.yaml     the recipe, written first; one whose answers are the same continues (`eval.continuing`)
base.txt        the fingerprint of the model that answers
samples.jsonl   one record per answered sample (`eval.records`); in the order of the data once all are there
timings.jsonl   one line per answered sample: what it took
skipped.json    the samples that have no prompt
summary.json    the scores (`eval.summary`)

Each part of an evaluation that several processes share writes the first three under names of its own.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from videoauto_jax.base import keep_base
from videoauto_jax.distributed import refuse_processes
from videoauto_jax.errors import DataError, UsageError
from videoauto_jax.eval.answering import ModelAnswerer, check_model
from videoauto_jax.eval.cases import Case, beside_each_other, load_cases, missing_media, part_of
from videoauto_jax.eval.config import EvalConfig
from videoauto_jax.eval.continuing import claim
from videoauto_jax.eval.prompts import Prompts
from videoauto_jax.eval.records import make_records, question
from videoauto_jax.eval.running import Running
from videoauto_jax.eval.summary import summarize
from videoauto_jax.files import append_jsonl, read_jsonl, write_atomic, write_json
from videoauto_jax.rewards import RewardPool
from videoauto_jax.sampling.answer import Answer
from videoauto_jax.sampling.sampler import SamplingConfig

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called after every answer with samples done, samples in all, and the scores so far."""

_OTHERS = "Name another output=, or add --force to begin anew and lose those results"
SAMPLES, TIMINGS, SKIPPED, SUMMARY = "samples.jsonl", "timings.jsonl", "skipped.json", "summary.json"


def evaluate(config: EvalConfig, force: bool = False, progress: Progress | None = None) -> dict:
    """Runs an evaluation, or takes it up where it stopped; returns what it writes to `output/summary.json`.

    Samples whose prompt cannot be made (a missing or damaged video, a prompt too long) are listed under `skipped` and
    count in no score; the next start tries them again.

    Args:
        config: the recipe.
        force: begin anew; what the folder holds of an evaluation is lost.
        progress: told after every answer.

    Raises:
        UsageError: the folder holds something else, or results of another recipe, other weights or other questions;
            several processes of a job would each answer everything, or a part would begin anew for all.
        ConfigError: an unknown benchmark or sub-task.
        DataError: annotations that cannot be used, an unknown problem type, not one sample that can be read; with
            `strict_media`, a missing video.
        ModelError: the folder is no model.
    """
    if config.part is None:
        refuse_processes("a whole evaluation", fix="Give each process its part of it, for example part=[0,4]")
    elif force:
        what = "--force would delete what the other parts have answered"
        raise UsageError(what, where=config.output, fix="Remove the folder, then start the parts without it")
    check_model(config)  # a wrong path is told before the folder is claimed for it
    cases = load_cases(config)
    missing = missing_media(cases)
    if missing and config.strict_media:
        raise _missing_media(cases, missing)
    folder = _claim(config, force)
    keep_base(folder, config.model, fix=_OTHERS)
    mine = part_of(cases, config.part)
    write_json(folder / _named(SKIPPED, config.part), _answer_all(config, mine, missing, folder, progress))
    records = read_records(folder, cases)
    skipped = _all_skipped(folder, {record["id"] for record in records})
    if not records:
        first, fix = skipped[0], "Check root=, the paths of the data sets, and that all videos are unpacked"
        what = f"not one of {len(skipped)} samples could be evaluated; the first is {first['id']}: {first['reason']}"
        raise DataError(what, where=first["media"], fix=fix)
    if len(records) + len(skipped) == len(cases):
        write_atomic(folder / SAMPLES, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    summary = summarize(config, records, skipped, read_timings(folder))
    write_json(folder / SUMMARY, summary)
    return summary


def read_records(folder: str | Path, cases: Sequence[Case] | None = None) -> list[dict]:
    """The records of an evaluation's folder, in the order of `cases` if given. [] before the first answer."""
    found = {record["id"]: record for path in _parts_of(folder, SAMPLES) for record in read_jsonl(path)}
    if cases is None:
        return list(found.values())
    return [found[case.sample.id] for case in cases if case.sample.id in found]


def read_timings(folder: str | Path) -> list[dict]:
    """What every answer of an evaluation took, see `_answers`."""
    return [line for path in _parts_of(folder, TIMINGS) for line in read_jsonl(path)]


def read_skipped(folder: str | Path) -> list[dict]:
    """The samples that have no prompt."""
    return [skip for path in _parts_of(folder, SKIPPED) for skip in json.loads(path.read_text())]


def _parts_of(folder: str | Path, name: str) -> list[Path]:
    """A file and its parts, as far as they exist."""
    stem, _, suffix = name.partition(".")
    whole = Path(folder) / name
    return [*([whole] if whole.exists() else []), *sorted(Path(folder).glob(f"{stem}-*-of-*.{suffix}"))]


def _named(name: str, part: tuple[int, int] | None) -> str:
    """What a part calls its file."""
    stem, _, suffix = name.partition(".")
    return name if part is None else f"{stem}-{part[0]}-of-{part[1]}.{suffix}"


def _all_skipped(folder: Path, answered: set[str]) -> list[dict]:
    found = {skip["id"]: skip for skip in read_skipped(folder)}
    return [skip for name, skip in found.items() if name not in answered]


def _answer_all(
    config: EvalConfig, cases: list[Case], missing: set[str], folder: Path, progress: Progress | None
) -> list[dict]:
    """Answers what the folder lacks of some cases; returns those that have no prompt."""
    done = {record["id"]: record for record in read_records(folder, cases)}
    _check_questions(cases, done, folder)
    skipped = [_skip(case, "its file does not exist") for case in cases if case.sample.id in missing - done.keys()]
    todo = [case for case in cases if case.sample.id not in missing | done.keys()]
    if not todo:
        return skipped
    so_far = Running(config)
    for record in done.values():
        so_far.add(record)
    processor = config.data.processor(config.model)
    answerer = ModelAnswerer(config, processor)
    with RewardPool(config.graders) as pool:
        for sampling, part in _parts(config, todo):
            ahead = sampling.prompts * (1 + config.data.prefetch)
            with closing(Prompts(part, processor, workers=config.data.workers, ahead=ahead)) as prompts:
                for case, answer, timing in _answers(prompts, answerer, sampling):
                    record = make_records([case], [answer], pool, profile=config.profile)[0]
                    append_jsonl(folder / _named(SAMPLES, config.part), record)
                    append_jsonl(folder / _named(TIMINGS, config.part), timing)
                    so_far.add(record)
                    if progress is not None:
                        told = so_far.n + len(skipped) + len(prompts.damaged)
                        progress(told, len(cases), so_far.numbers())
            skipped += [_skip(case, reason) for case, reason in prompts.damaged]
    return skipped


def _check_questions(cases: Sequence[Case], done: Mapping[str, dict], folder: Path) -> None:
    """Answers are known by the number of their row: rows that have moved since would get those of others."""
    for case in cases:
        record = done.get(case.sample.id)
        if record and (record["question"], record["media"]) != (question(case.sample), case.sample.media):
            what = f"the data have changed since these answers were given: {case.sample.id} asks something else now"
            raise UsageError(what, where=folder, fix=_OTHERS)


def _parts(config: EvalConfig, cases: Sequence[Case]) -> Iterator[tuple[SamplingConfig, list[Case]]]:
    """The cases by how their answers are written: their length is the size of what the sampler keeps on the device."""
    parts: dict[SamplingConfig, list[Case]] = {}
    for case in beside_each_other(cases):
        parts.setdefault(config.sampling_of(case.sample.source), []).append(case)
    yield from parts.items()


def _answers(
    prompts: Prompts, answerer: ModelAnswerer, sampling: SamplingConfig
) -> Iterator[tuple[Case, Answer, dict]]:
    """Answered cases in the order of finishing, and what each took.

    `at` is the time of day in seconds, `seconds` the time since the answer before, `waited` the part of it in which no
    prompt was ready, `first` whether loading and compiling are in it.
    """
    clock, waited, first = time.perf_counter(), 0.0, True
    for position, answer in answerer.stream(prompts, sampling):
        case, now = prompts.taken[position], time.perf_counter()
        if answer.error:
            prompts.damaged.append((case, answer.error))
            continue
        timing = {
            "id": case.sample.id,
            "source": case.sample.source,
            "first": first,
            "at": time.time(),
            "seconds": now - clock,
            "waited": prompts.waited - waited,
            "prompt_tokens": prompts.lengths[position],
            "tokens": len(answer.token_ids),
        }
        clock, waited, first = now, prompts.waited, False
        yield case, answer, timing


def _skip(case: Case, reason: str) -> dict:
    return {"id": case.sample.id, "source": case.sample.source, "media": case.sample.media, "reason": reason}


def _missing_media(cases: Sequence[Case], missing: set[str]) -> DataError:
    first = next(case.sample.media for case in cases if case.sample.id in missing)
    what = f"the files of {len(missing)} of {len(cases)} samples do not exist"
    fix = "Complete the download, or leave strict_media out to evaluate the rest"
    return DataError(what, where=f"the first is {first}", fix=fix)


def _claim(config: EvalConfig, force: bool) -> Path:
    try:
        return claim(config, force=force, fix=_OTHERS)
    except UsageError:
        if config.part is None:
            raise
        time.sleep(1.0)  # another part may be just about to claim it
        return claim(config, force=force, fix=_OTHERS)
