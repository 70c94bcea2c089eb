"""What every token of a byte-level BPE tokenizer spells, as symbols of the byte DFA."""

from collections.abc import Iterable
from typing import Any

from videoauto_jax.errors import ModelError
from videoauto_jax.protocol.reader import CLOSE, END, FOREIGN, OPEN

_ENDS = ("<|im_end|>", "<|endoftext|>")  # of the Qwen family: end of turn, end of text (also the padding)
_TAGS = (OPEN.decode(), CLOSE.decode())


def token_symbols(tokenizer: Any, vocab_size: int | None = None, stop_ids: Iterable[int] = ()) -> list[tuple[int, ...]]:
    """The symbols of every token id.

    Ordinary tokens spell bytes; added tokens spell their content in UTF-8; the tokenizer's eos and pad, `<|im_end|>`,
    `<|endoftext|>` and `stop_ids` are `END`; other special tokens and ids without a token are `FOREIGN`.

    Args:
        tokenizer: a transformers tokenizer (`get_vocab`, `added_tokens_decoder`, `eos_token_id`, `pad_token_id`).
        vocab_size: rows of the model's LM head; at least the tokenizer's size, and by default just that.
        stop_ids: further ids that end a response.

    Raises:
        ModelError: the tokenizer is not byte-level BPE, or has ids beyond `vocab_size`.
    """
    vocab = tokenizer.get_vocab()
    added = tokenizer.added_tokens_decoder
    least = max([*vocab.values(), *added], default=-1) + 1
    size = least if vocab_size is None else vocab_size
    if size < least:
        raise ModelError(f"vocab_size {size} is less than the tokenizer's {least}", fix="Use the model's own tokenizer")
    symbols: list[tuple[int, ...]] = [(FOREIGN,)] * size
    byte_of = {char: byte for byte, char in enumerate(_byte_characters())}
    for token, index in vocab.items():
        if index not in added:
            symbols[index] = _spell(token, byte_of)
    for index, token in added.items():
        foreign = token.special and token.content not in _TAGS
        symbols[index] = (FOREIGN,) if foreign else tuple(token.content.encode())
    for index in _stops(tokenizer, vocab, size, stop_ids):
        symbols[index] = (END,)
    return symbols


def _spell(token: str, byte_of: dict[str, int]) -> tuple[int, ...]:
    try:
        return tuple(byte_of[char] for char in token)
    except KeyError:
        raise ModelError(
            f"token {token!r} is not spelled in byte-level characters",
            fix="The protocol automaton needs a byte-level BPE tokenizer, as those of the Qwen family",
        ) from None


def _stops(tokenizer: Any, vocab: dict[str, int], size: int, stop_ids: Iterable[int]) -> set[int]:
    named = {vocab[token] for token in _ENDS if token in vocab}
    stops = named | {tokenizer.eos_token_id, tokenizer.pad_token_id, *map(int, stop_ids)} - {None}
    if wrong := [index for index in stops if not 0 <= index < size]:
        raise ModelError(f"stop ids {wrong} are outside the vocabulary of {size} tokens")
    return stops


def _byte_characters() -> list[str]:
    """The character by which byte-level BPE writes each byte: itself if printable, else the next one from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]
