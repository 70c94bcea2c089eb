"""Which weights the content of an output folder rests on.

A recipe names a folder, whose weights may be others the next time. Nothing else would notice: frozen weights are in no
checkpoint, and answers do not say who gave them.
"""

from pathlib import Path

from videoauto_jax.errors import UsageError
from videoauto_jax.files import write_atomic
from videoauto_jax.models.config import resolve_folder
from videoauto_jax.models.tensor_files import fingerprint

NOTE = "base.txt"


def keep_base(folder: Path, model: str | Path, *, fix: str) -> None:
    """Notes the weights of `model` as those that `folder` rests on, or checks that they still are.

    Raises:
        UsageError: they are others.
        ModelError: there is no such model.
    """
    if (folder / NOTE).exists():
        check_base(folder, model, fix=fix)
    else:
        write_atomic(folder / NOTE, _mark(model) + "\n")


def check_base(folder: Path, model: str | Path, *, fix: str) -> None:
    """Checks that `model` is there, and that it is what a note in `folder` names, if there is one.

    Raises:
        UsageError: it has other weights.
        ModelError: there is no such model.
    """
    note, mark = folder / NOTE, _mark(model)
    if note.exists() and note.read_text().strip() != mark:
        raise UsageError(f"this did not begin with the weights that are in {model} now", where=folder, fix=fix)


def _mark(model: str | Path) -> str:
    return fingerprint(resolve_folder(model, weights=True))
