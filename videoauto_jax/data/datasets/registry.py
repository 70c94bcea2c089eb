"""The registry of loaders, and loading the sets that a recipe names."""

import dataclasses
import difflib
import importlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from videoauto_jax.data.annotations import ImageBudget, Origin, Record, Sample, VideoBudget
from videoauto_jax.data.records import read_records
from videoauto_jax.errors import ConfigError

Loader = Callable[[Record], Sample | None]

log = logging.getLogger(__name__)
_LOADERS: dict[str, Loader] = {}


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """One data set of a recipe.

    Attributes:
        loader: a registered name, or `module:function`; the data set's own name where empty.
        anno_path: annotation file (JSON list or JSON lines), or a directory of them.
        data_path: folder that the media paths of the annotations are relative to.
        image, video: budgets of this set; the recipe's where None.
        tags: labels every sample of the set carries.
        problem_type: what grades the samples of this set, whatever their annotations say: a name, or `module:function`;
            their own where empty.
    """

    loader: str = ""
    anno_path: str = ""
    data_path: str = ""
    image: ImageBudget | None = None
    video: VideoBudget | None = None
    tags: tuple[str, ...] = ()
    problem_type: str = ""


def dataset(name: str) -> Callable[[Loader], Loader]:
    """Registers a loader: a function from one `Record` to its `Sample`, or None to leave the record out.

    Raises:
        ConfigError: the name is taken by another function.
    """

    def register(loader: Loader) -> Loader:
        if _LOADERS.get(name, loader) is not loader:
            raise ConfigError(f"a loader named '{name}' exists already", fix="Choose another name.")
        _LOADERS[name] = loader
        return loader

    return register


def loaders() -> list[str]:
    """Names of the registered loaders."""
    return sorted(_LOADERS)


def load_datasets(
    names: Sequence[str],
    configs: Mapping[str, DatasetConfig],
    system_prompt: str | None,
    *,
    image: ImageBudget | None = None,
    video: VideoBudget | None = None,
    keep_missing: bool = False,
) -> list[Sample]:
    """The samples of the named sets, one set after the other, in the order of their annotations.

    Samples whose media file does not exist are left out; one warning per set counts them.

    Args:
        names: keys of `configs`.
        system_prompt: the system message of every sample, as is; None for no system message.
        image, video: budgets of the sets that state none; where None, upstream's for Qwen2.5-VL.
        keep_missing: leave nothing out; encoding such a sample raises MediaError.

    Raises:
        ConfigError: a name without configuration or annotations, a name given twice, an unknown loader.
        DataError: annotations that cannot be used; names the file, the line or record, and the field.
    """
    _check(names, configs)
    samples: list[Sample] = []
    for name in names:
        config = configs[name]
        budgets = (config.image or image or ImageBudget(), config.video or video or VideoBudget())
        origin = Origin(name, system_prompt, config.data_path, *budgets, tags=tuple(config.tags))
        found = _load(_loader(config.loader or name), origin, config.anno_path)
        if config.problem_type:
            found = [dataclasses.replace(sample, problem_type=config.problem_type) for sample in found]
        samples += found if keep_missing else _with_media(found, name)
    return samples


def _check(names: Sequence[str], configs: Mapping[str, DatasetConfig]) -> None:
    for name in names:
        if name not in configs:
            raise ConfigError(f"data set '{name}' is not configured", fix=_nearest(name, configs))
        if not configs[name].anno_path:
            raise ConfigError(f"data set '{name}' has no anno_path", fix="Set it to the annotation file.")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ConfigError(f"data sets named twice: {', '.join(repeated)}", fix="Name each data set once.")


def _loader(name: str) -> Loader:
    if name in _LOADERS:
        return _LOADERS[name]
    module, colon, function = name.partition(":")
    if not colon:
        fix = f"{_nearest(name, _LOADERS)} Or write module:function to use your own."
        raise ConfigError(f"no loader named '{name}'", fix=fix)
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        fix = "Write loader: module:function, with the module on PYTHONPATH."
        raise ConfigError(f"loader '{name}' cannot be imported: {error}", fix=fix) from None


def _nearest(name: str, known: Iterable[str]) -> str:
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = [by_folded[match] for match in difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)]
    return f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(sorted(by_folded.values()))}."


def _load(loader: Loader, origin: Origin, anno_path: str) -> list[Sample]:
    records = (Record(data, where, key, group, origin) for where, key, group, data in read_records(anno_path))
    return [sample for record in records if (sample := loader(record)) is not None]


def media_exist(samples: Sequence[Sample]) -> list[bool]:
    """Whether each sample's media file exists; true where it needs none."""
    paths = [sample.media for sample in samples]
    # Tens of thousands of look-ups on a network file system: latency, not work, so threads.
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda path: path is None or os.path.exists(path), paths))


def _with_media(samples: list[Sample], source: str) -> list[Sample]:
    present = media_exist(samples)
    missing = [sample for sample, there in zip(samples, present) if not there]
    if missing:
        log.warning(
            "%s: %d of %d samples skipped, their media do not exist (first: %s)",
            *(source, len(missing), len(samples), missing[0].media),
        )
    return [sample for sample, there in zip(samples, present) if there]
