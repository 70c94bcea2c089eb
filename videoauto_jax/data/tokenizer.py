"""A checkpoint's tokenizer and chat template."""

from pathlib import Path

from videoauto_jax.errors import ModelError
from videoauto_jax.models.config import read_json


def resolve_folder(path: str | Path, *, weights: bool = False) -> Path:
    """A local folder; of a model named as on the Hugging Face hub the small files, or all, are downloaded.

    Raises:
        ModelError: there is no such folder, and no such model can be reached.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    cause = None
    if isinstance(path, str) and path.count("/") == 1 and not path.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download

        try:
            patterns = ["*.json", "*.jinja", "merges.txt", *(["*.safetensors"] if weights else [])]
            return Path(snapshot_download(path, allow_patterns=patterns))
        except Exception as error:  # the hub raises many unrelated kinds, offline and online
            cause = error
    raise ModelError("no such checkpoint folder", where=path, fix="Check the path, or download the model") from cause


def load_tokenizer(folder: Path):
    """The fast tokenizer of a checkpoint folder.

    Raises:
        ModelError: there is none, or it is broken.
    """
    fix = "Restore the checkpoint's tokenizer.json and tokenizer_config.json"
    # Without its files transformers would make an empty tokenizer and say nothing.
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError("no tokenizer", where=folder, fix=fix)
    # Imported here: it takes two seconds, and commands that need no tokenizer should not wait for it.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a broken file surfaces as whatever its parser raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"no usable tokenizer: {reason}", where=folder, fix=fix) from error


def chat_template(folder: Path, tokenizer) -> str:
    """chat_template.jinja, else the chat_template.json of older hub folders, else the tokenizer's own.

    Raises:
        ModelError: there is none.
    """
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    template = (read_json(folder / "chat_template.json") or {}).get("chat_template") or tokenizer.chat_template
    if not isinstance(template, str):
        raise ModelError("no chat template", where=folder, fix="Add the checkpoint's chat_template.jinja")
    return template
