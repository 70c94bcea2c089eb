"""Questions about scenes. Perception and grounding need one look; reasoning needs every second of the video.

A maker turns a scene into an `Item`: the annotation fields of the training set it imitates, the right answer, the
plausible wrong ones, and the two thoughts a demonstration can show.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from videoauto_jax.cli.quickstart.scene import COLOURS, LAMPS, MOTIONS, SHAPES, Scene, whereabouts

LETTERS = "ABCD"
WORDS = ("zero", "one", "two", "three", "four")
GUESS = "{guess}"


@dataclasses.dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        kind: perception, reasoning, grounding, or look for a lesson.
        skill: the maker's name.
        source: the annotation file it belongs to, a key of `world.SOURCES`.
        fields: its annotation record, without id, tags and media.
        problem_type: the reward that grades it: exact_match, math, iou or gqa.
        answer: what a right box contains.
        wrong: every other plausible content of a box.
        careful: a thought that leads to the answer step by step.
        hurried: a thought that only states a guess, which stands where `{guess}` is.
    """

    kind: str
    skill: str
    source: str
    fields: dict[str, Any]
    problem_type: str
    answer: str
    wrong: tuple[str, ...]
    careful: str
    hurried: str = f"It looks like {GUESS}."


def colour(scene: Scene, rng: np.random.Generator) -> Item:
    thought = f"The shape is {scene.colour}."
    return _word("colour", "What colour is the shape?", scene.colour, COLOURS, thought)


def object_(scene: Scene, rng: np.random.Generator) -> Item:
    return _word("object", "Which shape is it?", scene.shape, SHAPES, f"The shape is a {scene.shape}.")


def direction(scene: Scene, rng: np.random.Generator) -> Item:
    thought = f"{whereabouts(scene, 0)} to {whereabouts(scene, scene.seconds - 1)}, so {scene.motion}."
    return _word("direction", "Does the shape move left, right, or is it still?", scene.motion, MOTIONS, thought)


def when(scene: Scene, rng: np.random.Generator) -> Item:
    right, wrong = _intervals(scene)
    fields = {"description": "the border lights up.", "timestamps": [float(t) for t in scene.flash]}
    return Item("grounding", "when", "charades", fields, "iou", right, wrong, f"The border is lit in {right}.")


def grounded(scene: Scene, rng: np.random.Generator) -> Item:
    options, letter = _options(rng, list(COLOURS), scene.colour)
    right, wrong = _intervals(scene)
    fields = {
        "question": "What colour is the shape while the border is lit?",
        "options": options,
        "answer": letter,
        "timestamps": [[float(t) for t in scene.flash]],
    }
    pairs = [f"{a} <> {span}" for a in LETTERS for span in (right, *wrong)]
    answer = f"{letter} <> {right}"
    thought = f"The shape is {scene.colour}, so {letter}. The border is lit in {right}."
    others = tuple(pair for pair in pairs if pair != answer)
    return Item("grounding", "grounded", "nextgqa", fields, "gqa", answer, others, thought)


def count(scene: Scene, rng: np.random.Generator) -> Item:
    """Seconds in which the lamp has a colour. Rare counts are asked for more often, so that answers spread."""
    counts = np.array([scene.lamp.count(colour) for colour in LAMPS])
    weights = np.array([0.6, 0.7, 2.5, 7.0, 12.0])[counts]
    target = str(rng.choice(LAMPS, p=weights / weights.sum()))
    steps = [f"{s} {lamp} {scene.lamp[: s + 1].count(target)}" for s, lamp in enumerate(scene.lamp)]
    question = f"In how many seconds is the lamp {target}?"
    return _number("count", question, scene.lamp.count(target), range(5), "; ".join(steps) + ".")


def sum_(scene: Scene, rng: np.random.Generator) -> Item:
    totals = np.cumsum(scene.dots) % 10
    steps = [f"{s} {WORDS[dots]} {total}" for s, (dots, total) in enumerate(zip(scene.dots, totals))]
    question = "Add the dots of every second. What is the last digit of the total?"
    return _number("sum", question, int(totals[-1]), range(10), "; ".join(steps) + ".")


def order(scene: Scene, rng: np.random.Generator) -> Item:
    shown = list(dict.fromkeys(scene.lamp))
    chosen = rng.choice(shown, 3, replace=False)
    asked = [colour for colour in shown if colour in chosen]
    named = ", ".join(sorted(asked))
    orders = [", ".join(colours) for colours in itertools.permutations(asked)]
    options, letter = _options(rng, orders, ", ".join(asked))
    steps = "; ".join(f"{s} {lamp}" for s, lamp in enumerate(scene.lamp))
    thought = f"{steps}. First {', '.join(asked)}, so {letter}."
    question = f"In which order does the lamp first show {named}?"
    return _choice("order", question, options, letter, thought)


def still_colour(scene: Scene, second: int) -> Item:
    return _still("still_colour", "What colour is the shape?", scene.colour, COLOURS, f"The shape is {scene.colour}.")


def still_object(scene: Scene, second: int) -> Item:
    return _still("still_object", "Which shape is it?", scene.shape, SHAPES, f"The shape is a {scene.shape}.")


def still_dots(scene: Scene, second: int) -> Item:
    n = scene.dots[second]
    return _still("still_dots", "How many dots are there?", str(n), "1234", f"Number of dots: {n}.")


def digits(numbers: Sequence[int]) -> Item:
    """A text-only sum, thought through in the same steps as the dots of a video."""
    totals = np.cumsum(numbers) % 10
    steps = "; ".join(f"{WORDS[n]} {total}" for n, total in zip(numbers, totals)) + "."
    question = f"What is the last digit of {' + '.join(map(str, numbers))}?"
    answer = str(totals[-1])
    fields = {"prompt": question, "solution": answer}
    wrong = _others(map(str, range(10)), answer)
    return Item("reasoning", "digits", "dapo", fields, "math", answer, wrong, steps)


def look(scene: Scene) -> list[Item]:
    """What there is to see, second by second: lessons in looking, which come before any question."""
    lit = ["lit" if scene.flash[0] <= second < scene.flash[1] else "dark" for second in range(scene.seconds)]
    shown = {
        "lamp": scene.lamp,
        "dots": [WORDS[dots] for dots in scene.dots],
        "border": lit,
        "place": [whereabouts(scene, second) for second in range(scene.seconds)],
        "shape": [f"{scene.colour} {scene.shape}"] * scene.seconds,
    }
    return [_look(skill, "; ".join(f"{s} {what}" for s, what in enumerate(seen))) for skill, seen in shown.items()]


VIDEO_QUESTIONS: dict[str, Callable[[Scene, np.random.Generator], Item]] = {
    "colour": colour,
    "object": object_,
    "direction": direction,
    "when": when,
    "grounded": grounded,
    "count": count,
    "sum": sum_,
    "order": order,
}
IMAGE_QUESTIONS: dict[str, Callable[[Scene, int], Item]] = {
    "still_colour": still_colour,
    "still_object": still_object,
    "still_dots": still_dots,
}


def _look(skill: str, answer: str) -> Item:
    fields = {"question": f"List the {skill}.", "answer": answer}
    return Item("look", skill, "lessons", fields, "exact_match", answer, (), "")


def _choice(skill: str, question: str, options: list[str], letter: str, thought: str) -> Item:
    fields = _videor1(question, "multiple choice", options, letter)
    wrong = _others(LETTERS[: len(options)], letter)
    return Item("reasoning", skill, "videor1", fields, "exact_match", letter, wrong, thought)


def _word(skill: str, question: str, answer: str, plausible: Sequence[str], thought: str) -> Item:
    fields = {"problem": question, "data_type": "video", "answer": f"<answer>{answer}</answer>"}
    wrong = _others(plausible, answer)
    return Item("perception", skill, "longvideoreason", fields, "exact_match", answer, wrong, thought)


def _number(skill: str, question: str, answer: int, plausible: Sequence[int], thought: str) -> Item:
    fields = _videor1(question, "numerical", [], str(answer))
    wrong = _others(map(str, plausible), str(answer))
    return Item("reasoning", skill, "videor1", fields, "math", str(answer), wrong, thought)


def _still(skill: str, question: str, answer: str, plausible: Sequence[str], thought: str) -> Item:
    fields = {"question": f"<image>\n{question}", "answer": f"\\boxed{{{answer}}}"}
    problem_type = "math" if answer.isdigit() else "exact_match"
    return Item("perception", skill, "virl", fields, problem_type, answer, _others(plausible, answer), thought)


def _videor1(question: str, problem_type: str, options: list[str], answer: str) -> dict[str, Any]:
    return {
        "problem": question,
        "problem_type": problem_type,
        "options": options,
        "solution": f"<answer>{answer}</answer>",
        "data_type": "video",
    }


def _options(rng: np.random.Generator, plausible: Sequence[str], right: str) -> tuple[list[str], str]:
    """Up to four lettered options in random order, the right one among them, and its letter."""
    wrong = rng.permutation(_others(plausible, right))[:3]
    texts = rng.permutation([*wrong, right]).tolist()
    return [f"{letter}. {text}" for letter, text in zip(LETTERS, texts)], LETTERS[texts.index(right)]


def _intervals(scene: Scene) -> tuple[str, tuple[str, ...]]:
    """The flash as a box shows it, and all other whole-second intervals of the video."""
    ends = [(a, b) for a in range(scene.seconds) for b in range(a + 1, scene.seconds + 1)]
    spans = [f"[{a}.0, {b}.0]" for a, b in ends]
    right = f"[{scene.flash[0]}.0, {scene.flash[1]}.0]"
    return right, _others(spans, right)


def _others(plausible, right: str) -> tuple[str, ...]:
    return tuple(text for text in plausible if text != right)
