"""`videoauto eval rescore RUN`: other rules or another threshold for answers that are there already."""

import dataclasses
from pathlib import Path

from videoauto_jax.cli.eval import show
from videoauto_jax.config import dump_config
from videoauto_jax.errors import UsageError
from videoauto_jax.eval.records import grade_records
from videoauto_jax.eval.results import Results
from videoauto_jax.eval.runner import SAMPLES, SKIPPED, SUMMARY, TIMINGS
from videoauto_jax.eval.summary import summarize
from videoauto_jax.files import append_jsonl, claim_folder, write_json
from videoauto_jax.protocol.grammar import Profile
from videoauto_jax.rewards import RewardPool


@dataclasses.dataclass(frozen=True)
class RescoreConfig:
    """Another scoring of an evaluation.

    Attributes:
        run: its folder.
        output: folder of the new scores.
        profile: grading rules; null: as before.
        threshold: of mode `auto`; null: as before.
        graders: processes that grade mathematics.
    """

    run: str
    output: str
    profile: Profile | None = None
    threshold: float | None = None
    graders: int = 2


CONFIG = RescoreConfig
POSITIONAL = ("run", "output")
HELP = "Scores the answers of an evaluation again, without the model: another profile, another threshold."


def run(config: RescoreConfig, *, force: bool) -> None:
    """Writes what `videoauto eval` would have written, into another folder.

    Raises:
        UsageError: no such evaluation; the output is the run itself; another threshold than the one at which the run's
            gate stopped answers.
    """
    if Path(config.output).resolve() == Path(config.run).resolve():
        what = "the scores would replace the answers they rest on"
        raise UsageError(what, where=config.output, fix="Name another output folder")
    results = Results(config.run)
    sampling = results.config.sampling
    threshold = sampling.threshold if config.threshold is None else config.threshold
    if threshold != sampling.threshold:
        results.require("second")
    recipe = dataclasses.replace(
        results.config,
        output=config.output,
        profile=config.profile or results.config.profile,
        sampling=dataclasses.replace(sampling, threshold=threshold),
    )
    fix = "Name another output folder, or add --force to replace it"
    text, inputs = dump_config(recipe), [config.run]
    folder = claim_folder(config.output, text, holds="another evaluation", fix=fix, force=force, inputs=inputs)
    with RewardPool(config.graders) as pool:
        records = grade_records(results.records, pool, profile=recipe.profile)
    for name, lines in ((SAMPLES, records), (TIMINGS, results.timings)):
        Path(folder, name).unlink(missing_ok=True)
        for line in lines:
            append_jsonl(folder / name, line)
    write_json(folder / SKIPPED, results.skipped)
    summary = summarize(recipe, records, results.skipped, results.timings)
    write_json(folder / SUMMARY, summary)
    show(summary, config.output)
