"""A checkpoint's tokenizer and chat template."""

from pathlib import Path

from videoauto_jax.errors import ModelError
from videoauto_jax.models.config import read_json


def load_tokenizer(folder: Path):
    """The fast tokenizer of a checkpoint folder.

    Raises:
        ModelError: there is none, or it is broken.
    """
    fix = "Restore the checkpoint's tokenizer.json, tokenizer_config.json and config.json"
    # Without its files transformers would make an empty tokenizer and say nothing.
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError("no tokenizer", where=folder, fix=fix)
    # Imported here: it takes two seconds, and commands that need no tokenizer should not wait for it.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a broken file surfaces as whatever its parser raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"no usable tokenizer: {reason}", where=folder, fix=fix) from error


def chat_template(folder: Path, tokenizer) -> str:
    """chat_template.jinja, else the chat_template.json of older hub folders, else the tokenizer's own; of several by
    name that named `default`.

    Raises:
        ModelError: there is none.
    """
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    template = (read_json(folder / "chat_template.json") or {}).get("chat_template") or tokenizer.chat_template
    template = template.get("default") if isinstance(template, dict) else template
    if not isinstance(template, str):
        raise ModelError("no chat template", where=folder, fix="Add the checkpoint's chat_template.jinja")
    return template


def check_vocabulary(folder: Path, tokenizer) -> None:
    """Every token has an embedding.

    Raises:
        ModelError: config.json states fewer; the model would take another token's for the last ones, and say nothing.
    """
    config = read_json(folder / "config.json") or {}
    size = (config.get("text_config") or {}).get("vocab_size") or config.get("vocab_size")
    if isinstance(size, int) and len(tokenizer) > size:
        what = f"the tokenizer has {len(tokenizer)} tokens, config.json states embeddings for {size}"
        raise ModelError(what, where=folder, fix="Use the tokenizer and the config.json of one checkpoint")
