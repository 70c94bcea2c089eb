"""The token automaton against a parser of the decoded text, and the device gate against the host replay."""

import math
import random
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from videoauto_jax.errors import ModelError
from videoauto_jax.protocol import gate as gates
from videoauto_jax.protocol.automaton import compile_automaton
from videoauto_jax.protocol.confidence import answer_tokens, normalize_answer, replay
from videoauto_jax.protocol.dfa import build_dfa
from videoauto_jax.protocol.grammar import first_answer, is_well_formed
from videoauto_jax.protocol.reader import MAX_DEPTH, Field, Mark
from videoauto_jax.protocol.token_bytes import token_symbols

DATA = Path(__file__).parents[1] / "data"
END = "<|im_end|>"


def load(name):
    return PreTrainedTokenizerFast(tokenizer_file=str(DATA / f"{name}_tokenizer.json"))


TOKENIZERS = {name: load(name) for name in ("tiny_q25like", "tiny_q3like")}
AUTOMATA = {name: compile_automaton(tokenizer) for name, tokenizer in TOKENIZERS.items()}
SPELLINGS = {
    name: {bytes(s): index for index, s in enumerate(token_symbols(t)) if s and max(s) < 256}
    for name, t in TOKENIZERS.items()
}

# The oracle: regular expressions over the text.

BOX_BODY = r"[^{}]*"
for _ in range(MAX_DEPTH):
    BOX_BODY = rf"[^{{}}]*(?:\{{{BOX_BODY}\}}[^{{}}]*)*"
BOX = re.compile(rf"\\boxed\{{({BOX_BODY})\}}")
RESPONSE = re.compile(rf"\s*{BOX.pattern}\s*<think>(.*)</think>\s*{BOX.pattern}\s*", re.DOTALL)


def oracle_well_formed(text):
    once = text.count("<think>") == text.count("</think>") == 1
    match = RESPONSE.fullmatch(text) if once else None
    return match is not None and bool(match[2].strip())


def oracle_first(text):
    """Match of the first answer: the first box that opens before the first tag, if it is closed there."""
    before = re.split("</?think>", text)[0]
    start = before.find("\\boxed{")
    return BOX.match(before, start) if start >= 0 else None


def oracle_field(text):
    first, tag = oracle_first(text), re.search("</?think>", text)
    if first is None and tag is None:
        return Field.FIRST if "\\boxed{" in text else Field.BEFORE_FIRST
    rest = text[first.end() if first else tag.start() :]
    if "</think>" not in rest:
        return Field.THOUGHT if "<think>" in rest else Field.BEFORE_THOUGHT
    tail = rest[rest.rfind("</think>") + len("</think>") :]
    start = tail.find("\\boxed{")
    if start < 0:
        return Field.BEFORE_SECOND
    return Field.AFTER_SECOND if BOX.match(tail, start) else Field.SECOND


def oracle_answer_tokens(text, sizes):
    """Indices of the tokens (given by their sizes in bytes) that overlap the normalised first answer."""
    first = oracle_first(text)
    if first is None or first[1].lstrip().startswith("Let's analyze"):
        return []
    answer = normalize_answer(first[1])
    start = first.start(1) + first[1].index(answer)
    low, high = len(text[:start].encode()), len(text[: start + len(answer)].encode())
    ends = np.cumsum(sizes)
    return [i for i, (size, end) in enumerate(zip(sizes, ends)) if end > low and end - size < high]


# Generated responses, cut into tokens in any way the vocabulary allows.

PIECES = [
    "A",
    "b",
    "(",
    "[",
    "{",
    "}",
    ")",
    "]",
    ".",
    "-",
    "/",
    ":",
    " ",
    "\n",
    "\u3000",
    "\u2003",
    "é",
    "甲",
    "cat",
    "4",
]
PIECES += ["\\", "<", ">", "think", "boxed", "\\boxed{", "<think>", "</think>", "<thi", "nk>", "Let", "Let's analyze"]
PIECES += ["\\frac{1}{2}", "{{{A}}}", "L", "}<", "]}", "\x85", "\x1f", "Â", "â\u0080"]
spaces = st.lists(st.sampled_from([" ", "\n", "\u3000", "\u2028"]), max_size=2).map("".join)
soup = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
inner = st.one_of(soup, st.sampled_from(["A", "(A)", " b ", "[ c ] dog", "{D}", "\u3000L. x", "Let's analyze it", ""]))
shaped = st.tuples(spaces, inner, spaces, soup, spaces, inner, spaces).map(
    lambda p: f"{p[0]}\\boxed{{{p[1]}}}{p[2]}<think>{p[3]}</think>{p[4]}\\boxed{{{p[5]}}}{p[6]}"
)
texts = st.one_of(shaped, st.tuples(soup, shaped).map("".join), st.tuples(shaped, soup).map("".join), soup)
names = st.sampled_from(sorted(TOKENIZERS))


def cut(text, name, seed):
    rng, data, ids = random.Random(seed), text.encode(), []
    while data:
        choices = [size for size in range(1, min(len(data), 12) + 1) if data[:size] in SPELLINGS[name]]
        size = rng.choice(choices)
        ids.append(SPELLINGS[name][data[:size]])
        data = data[size:]
    return ids


def braces_at_most(text, depth):
    """Conservative: no run of text opens more braces than that."""
    level = deepest = 0
    for char in text:
        level = max(level + (char == "{") - (char == "}"), 0)
        deepest = max(deepest, level)
    return deepest <= depth


@settings(max_examples=400, deadline=None)
@given(texts, names, st.integers(0, 2**32))
def test_any_segmentation_reads_as_the_text_does(text, name, seed):
    assume(braces_at_most(text, MAX_DEPTH))
    tokenizer, automaton = TOKENIZERS[name], AUTOMATA[name]
    for ids in (cut(text, name, seed), tokenizer.encode(text, add_special_tokens=False)):
        assert tokenizer.decode(ids) == text
        steps = replay(automaton, [*ids, tokenizer.convert_tokens_to_ids(END)])
        before_end = ([automaton.start] + [state for _, state in steps])[-2]
        assert Field(automaton.field[before_end]) is oracle_field(text)
        assert bool(automaton.valid[steps[-1][1]]) == oracle_well_formed(text)
        closed = oracle_first(text) is not None
        assert any(marks & Mark.CLOSES_FIRST for marks, _ in steps) == closed == automaton.first_closed[before_end]
        sizes = [len(token) if index < 394 else len(token.encode()) for index, token in zip(ids, _tokens(name, ids))]
        assert answer_tokens(automaton, ids) == oracle_answer_tokens(text, sizes)


def _tokens(name, ids):
    return TOKENIZERS[name].convert_ids_to_tokens(ids)


@settings(max_examples=200, deadline=None)
@given(texts)
def test_the_text_parser_of_the_rewards_reads_alike(text):
    assume(braces_at_most(text, MAX_DEPTH))
    state = replay(AUTOMATA["tiny_q3like"], [*cut(text, "tiny_q3like", 0), 395])[-1][1]
    assert bool(AUTOMATA["tiny_q3like"].valid[state]) == is_well_formed(text)
    first = oracle_first(text)
    if first and first_answer(text):  # the rewards want that box to be the only one before the thought
        assert first_answer(text) == first[1]


@settings(max_examples=100, deadline=None)
@given(shaped, names, st.integers(0, 2**32))
def test_every_beginning_of_a_well_formed_response_is_valid_and_allowed(text, name, seed):
    assume(braces_at_most(text, MAX_DEPTH) and oracle_well_formed(text))
    automaton, state = AUTOMATA[name], 0
    for token in [*cut(text, name, seed), TOKENIZERS[name].convert_tokens_to_ids(END)]:
        column = automaton.token_class[token]
        assert automaton.class_allowed[state, column]
        state = automaton.class_next[state, column]
        assert automaton.valid[state]
    assert automaton.done[state]


def test_forced_decoding_can_always_finish_and_never_finishes_malformed():
    automaton = AUTOMATA["tiny_q25like"]
    taken = automaton.class_allowed & automaton.valid[:, None]
    assert automaton.valid[automaton.class_next[taken]].all()
    finishing = automaton.done & automaton.valid
    for _ in range(len(automaton.field)):  # states from which allowed tokens lead to the end
        finishing = finishing | (taken & finishing[automaton.class_next]).any(axis=1)
    assert finishing[automaton.valid].all()
    assert automaton.class_allowed[~automaton.valid].all()


allowed_in = jax.jit(lambda automaton, states, room: gates.allowed_tokens(automaton, gates.init((8,), states), room))


@settings(max_examples=12, deadline=None)
@given(names, st.booleans(), st.integers(-1, 24), st.integers(0, 2**32))
def test_a_forced_response_is_complete_within_its_room_if_it_can_be(name, inside, spare, seed):
    """Random tokens of those that are allowed, from the beginning of a response or of its first answer."""
    tokenizer, automaton, rng = TOKENIZERS[name], AUTOMATA[name], np.random.default_rng(seed)
    start = automaton.start_inside if inside else automaton.start
    room, written = int(automaton.needed[start]) + spare, [[] for _ in range(8)]
    states = np.full(8, start)
    for left in range(room, 0, -1):
        allowed = np.asarray(allowed_in(automaton, states, left))
        for row in np.flatnonzero(~automaton.done[states]):
            written[row].append(rng.choice(np.flatnonzero(allowed[row])))
            states[row] = replay(automaton, written[row][-1:], states[row])[0][1]
    for tokens in written:
        text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert is_well_formed("\\boxed{" * inside + text) == (spare >= 0), text


def test_whitespace_that_is_cut_off_completes_no_response():
    automaton, spell = AUTOMATA["tiny_q3like"], SPELLINGS["tiny_q3like"]
    ids = TOKENIZERS["tiny_q3like"].encode("\\boxed{1}<think>r</think>\\boxed{1}")
    begun = [*ids, *(spell[bytes([byte])] for byte in "\u2003".encode()[:2])]
    assert automaton.needed[replay(automaton, ids)[-1][1]] == 0
    assert automaton.needed[replay(automaton, begun)[-1][1]] == 1
    end = TOKENIZERS["tiny_q3like"].convert_tokens_to_ids(END)
    assert [automaton.valid[replay(automaton, [*some, end])[-1][1]] for some in (ids, begun)] == [True, False]


def test_deeper_braces_than_the_limit_are_malformed_and_never_confident():
    """Nor does such a box count as closed where the limit would close it: the gate would cut the answer there."""
    name = "tiny_q3like"
    for depth, valid in ((MAX_DEPTH, True), (MAX_DEPTH + 1, False), (MAX_DEPTH + 3, False)):
        box = f"\\boxed{{{'{' * depth}1{'}' * depth}}}"
        ids = TOKENIZERS[name].encode(f"{box}<think>r</think>{box}{END}")
        steps = replay(AUTOMATA[name], ids)
        assert AUTOMATA[name].valid[steps[-1][1]] == valid
        assert any(marks & Mark.CLOSES_FIRST for marks, _ in steps) == bool(answer_tokens(AUTOMATA[name], ids)) == valid


@pytest.mark.parametrize(
    "content, closing",
    [
        (b"A", "choice"),
        (b"\xe2\x80\x83A \n", "choice"),
        (b"\xe2A", None),  # bytes that are no character are no whitespace either
        (b"A\xe2", None),
        (b"Let's analyze it", "fallback"),
        (b"L et's analyze it", None),
        (b"cat", None),
    ],
)
def test_facts_of_the_state_inside_the_first_box(content, closing):
    automaton = AUTOMATA["tiny_q3like"]
    ids = [SPELLINGS["tiny_q3like"][bytes([byte])] for byte in b"\\boxed{" + content]
    state = replay(automaton, ids)[-1][1]
    assert automaton.choice[state] == (closing == "choice")
    assert automaton.fallback[state] == (closing == "fallback")


def test_special_tokens_are_foreign_and_stop_ids_finish():
    tokenizer = load("tiny_q25like")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image_pad|>", "<|stop|>"]})
    pad, stop = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|stop|>"])
    automaton = compile_automaton(tokenizer, vocab_size=len(tokenizer) + 3, stop_ids=[stop])
    assert automaton.next_state.shape == automaton.flags.shape == (len(automaton.field), len(tokenizer) + 3)
    assert automaton is compile_automaton(tokenizer, vocab_size=len(tokenizer) + 3, stop_ids=[stop])
    for wrong in (pad, len(tokenizer), len(tokenizer) + 99):
        marks, state = replay(automaton, [wrong])[0]
        assert not marks and not automaton.valid[state] and automaton.field[state] == Field.BEFORE_FIRST
    for end in (stop, *tokenizer.convert_tokens_to_ids([END, "<|endoftext|>"])):
        assert automaton.done[replay(automaton, [end])[0][1]]
        assert not automaton.allowed[automaton.start, end]


class StubTokenizer(SimpleNamespace):
    __hash__ = object.__hash__

    def get_vocab(self):
        return self.vocab

    def __len__(self):
        return len(self.vocab)


def stub(vocab):
    return StubTokenizer(vocab=vocab, added_tokens_decoder={}, eos_token_id=None, pad_token_id=None)


def test_a_real_sized_vocabulary_compiles_to_small_tables_that_follow_the_bytes():
    rng = random.Random(0)
    parts = ["boxed", "think", "Ġthe", "ing", "A", "{", "}", "<", ">", "\\", "(", ")", "/", "Let", "'s", "Ġ", "Ã©"]
    words = {
        "".join(rng.choices(parts + [chr(c) for c in range(33, 127)], k=rng.randint(1, 7))) for _ in range(220_000)
    }
    tokens = sorted(words)[:151_936]
    automaton, dfa = compile_automaton(stub({token: i for i, token in enumerate(tokens)})), build_dfa()
    assert automaton.token_class.shape == (151_936,)
    tables = jax.tree.leaves(automaton)
    assert sum(table.nbytes for table in tables) < 50_000_000
    spell = {"Ġ": b" ", "Ã": b"\xc3", "©": b"\xa9"}
    for index in rng.sample(range(len(tokens)), 300):
        state, marks = np.arange(len(dfa.field)), np.zeros(len(dfa.field), np.uint8)
        for byte in b"".join(spell.get(char, char.encode()) for char in tokens[index]):
            marks, state = marks | dfa.marks[state, byte], dfa.next_state[state, byte]
        column = automaton.token_class[index]
        np.testing.assert_array_equal(automaton.class_next[:, column], state)
        np.testing.assert_array_equal(automaton.class_marks[:, column], marks)


@pytest.mark.parametrize(
    "vocab, arguments, says",
    [
        ({"▁the": 0}, {}, "byte-level"),
        ({"a": 0, "b": 1}, {"vocab_size": 1}, "vocab_size 1"),
        ({"a": 0}, {"stop_ids": [7]}, r"\[7\]"),
    ],
)
def test_unusable_tokenizers_are_refused(vocab, arguments, says):
    with pytest.raises(ModelError, match=says):
        compile_automaton(stub(vocab), **arguments)


# The device gate.


@jax.jit
def run_gate(automaton, ids, log_probs, active):
    def take(gate, step):
        gate = gates.advance(automaton, gate, *step)
        return gate, gates.confidence(gate)

    return jax.lax.scan(take, gates.init(ids.shape[1:], automaton.start), (ids, log_probs, active))


@settings(max_examples=25, deadline=None)
@given(st.lists(texts, min_size=8, max_size=8), names, st.integers(0, 2**32))
def test_the_device_gate_equals_the_host_replay(batch, name, seed):
    automaton, length = AUTOMATA[name], 96
    sequences = [cut(text, name, seed)[: length - 1] + [395] for text in batch]
    rng = np.random.default_rng(seed)
    ids, active = np.zeros((2, length, 8), np.int32)
    for column, sequence in enumerate(sequences):  # steps at which a branch is not active must leave it alone
        steps = np.sort(rng.choice(length, len(sequence), replace=False))
        ids[:, column], active[steps, column] = rng.integers(0, 394, length), 1
        ids[steps, column] = sequence
    log_probs = -rng.exponential(size=ids.shape).astype(np.float32)
    gate, confidences = run_gate(automaton, ids, log_probs, active.astype(bool))
    for column, sequence in enumerate(sequences):
        values = log_probs[active[:, column] > 0, column]
        indices = answer_tokens(automaton, sequence)
        expected = math.exp(values[indices].mean()) if indices else -1
        assert float(gate.confidence[column]) == pytest.approx(expected, rel=1e-5)
        assert int(gate.state[column]) == replay(automaton, sequence)[-1][1]
        closed = [bool(marks & Mark.CLOSES_FIRST) for marks, _ in replay(automaton, sequence)]
        until = np.flatnonzero(active[:, column])[closed.index(True)] if any(closed) else length
        np.testing.assert_array_equal(confidences[:until, column], -1)


def test_the_gate_stops_a_compiled_loop_as_soon_as_the_first_answer_is_closed():
    tokenizer, automaton = TOKENIZERS["tiny_q25like"], AUTOMATA["tiny_q25like"]
    ids = jnp.array(tokenizer.encode("\\boxed{(A)}<think>r</think>\\boxed{A}"))

    @jax.jit
    def decode(automaton, threshold):
        def unsure(carry):
            gate, step = carry
            return (gates.confidence(gate) < threshold) & (step < len(ids))

        def take(carry):
            gate, step = carry
            return gates.advance(automaton, gate, ids[step], jnp.float32(-0.01)), step + 1

        return jax.lax.while_loop(unsure, take, (gates.init((), automaton.start), 0))

    gate, steps = decode(automaton, 0.97)
    assert int(steps) == 4  # `\boxed` `{(` `A` `)}<`
    assert float(gate.confidence) == pytest.approx(math.exp(-0.01))
    gate, steps = decode(automaton, 0.995)
    assert int(steps) == len(ids)
    assert bool(gates.first_closed(automaton, gate)) and bool(gates.well_formed(automaton, gate))
    assert not bool(gates.finished(automaton, gate))


def test_the_mask_of_a_batch():
    tokenizer, automaton = TOKENIZERS["tiny_q3like"], AUTOMATA["tiny_q3like"]
    states = [replay(automaton, tokenizer.encode(text))[-1][1] for text in ("\\boxed{A}", "so")]
    mask = gates.allowed_tokens(automaton, gates.init((2,), jnp.array(states)))
    np.testing.assert_array_equal(mask, automaton.allowed[states])
    assert {tokenizer.decode([i]) for i in np.flatnonzero(mask[0])} >= {"<think>", "<", "\n"}
    assert mask[0].sum() < 20 and mask[1].all()
