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
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ORDINALS = ("first", "second", "third", "fourth")
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
    return _word("colour", "What colour is the sign?", scene.colour, COLOURS, [scene.colour] * scene.seconds)


def object_(scene: Scene, rng: np.random.Generator) -> Item:
    return _word("object", "Which shape is the sign?", scene.shape, SHAPES, [scene.shape] * scene.seconds)


def direction(scene: Scene, rng: np.random.Generator) -> Item:
    places = [whereabouts(scene, second) for second in range(scene.seconds)]
    return _word("direction", "Does the bar move left, right, or is it still?", scene.motion, MOTIONS, places)


def when(scene: Scene, rng: np.random.Generator) -> Item:
    right, wrong = _intervals(scene)
    fields = {"description": "the border lights up.", "timestamps": [float(t) for t in scene.flash]}
    return Item("grounding", "when", "charades", fields, "iou", right, wrong, _by_second(_intervals_so_far(scene)))


def grounded(scene: Scene, rng: np.random.Generator) -> Item:
    letter, options = _shape_options(scene)
    right, wrong = _intervals(scene)
    fields = {
        "question": "Which shape is the sign while the border is lit?",
        "options": options,
        "answer": letter,
        "timestamps": [[float(t) for t in scene.flash]],
    }
    pairs = [f"{a} <> {span}" for a in LETTERS for span in (right, *wrong)]
    answer = f"{letter} <> {right}"
    thought = f"{_by_second(_intervals_so_far(scene))} {scene.shape}, {letter}."
    others = tuple(pair for pair in pairs if pair != answer)
    return Item("grounding", "grounded", "nextgqa", fields, "gqa", answer, others, thought)


def count(scene: Scene, rng: np.random.Generator) -> Item:
    """Seconds in which the lamp has a colour. Rare counts are asked for more often, so that answers spread."""
    counts = np.array([scene.lamp.count(colour) for colour in LAMPS])
    weights = np.array([0.6, 0.7, 2.5, 7.0, 12.0])[counts]
    target = str(rng.choice(LAMPS, p=weights / weights.sum()))
    steps = [f"{lamp} {target} {WORDS[scene.lamp[: s + 1].count(target)]}" for s, lamp in enumerate(scene.lamp)]
    question = f"In how many seconds is the lamp {target}?"
    return _number("count", question, scene.lamp.count(target), range(5), _by_second(steps))


def sum_(scene: Scene, rng: np.random.Generator) -> Item:
    question = "Add the dots of every second. What is the last digit of the total?"
    return _number("sum", question, sum(scene.dots) % 10, range(10), _by_second(_running_sum(scene.dots)))


def order(scene: Scene, rng: np.random.Generator) -> Item:
    """Which colour of the lamp is the second or third to appear. The thought numbers colours as they come."""
    shown = list(dict.fromkeys(scene.lamp))
    place = int(rng.integers(1, 3))
    asked, colour = ORDINALS[place], shown[place]
    found = [colour if colour in scene.lamp[: s + 1] else "none" for s in range(scene.seconds)]
    steps = [f"{lamp} {ORDINALS[shown.index(lamp)]} {asked} {so_far}" for lamp, so_far in zip(scene.lamp, found)]
    question = f"The lamp shows several colours. Which of them is the {asked} to appear?"
    return _word("order", question, colour, LAMPS, steps, kind="reasoning")


def still_colour(scene: Scene, second: int) -> Item:
    return _still("still_colour", "What colour is the sign?", scene.colour, COLOURS, f"{scene.colour}.")


def still_object(scene: Scene, second: int) -> Item:
    """Multiple choice, with the options of `grounded`."""
    letter, options = _shape_options(scene)
    fields = {
        "problem": "Which shape is the sign?",
        "problem_type": "multiple choice",
        "options": options,
        "solution": f"<answer>{letter}</answer>",
        "data_type": "image",
    }
    wrong, thought = _others(LETTERS, letter), f"{scene.shape}, {letter}."
    return Item("perception", "still_object", "videor1_images", fields, "exact_match", letter, wrong, thought)


def still_dots(scene: Scene, second: int) -> Item:
    dots = WORDS[scene.dots[second]]
    return _still("still_dots", "How many dots are there? Answer with a word.", dots, WORDS[1:5], f"{dots}.")


def digits(numbers: Sequence[int]) -> Item:
    """A text-only sum, thought through in the same steps as the dots of a video."""
    listed = ", ".join(f"{place} {WORDS[n]}" for place, n in enumerate(numbers))
    question = f"A list says {listed}. Add its numbers. What is the last digit of the total?"
    answer = str(sum(numbers) % 10)
    fields = {"prompt": question, "solution": answer}
    wrong = _others(map(str, range(10)), answer)
    return Item("reasoning", "digits", "dapo", fields, "math", answer, wrong, _by_second(_running_sum(numbers)))


def lessons(scene: Scene) -> list[Item]:
    """What a video shows, told outside of any box: second by second, so that every look starts from a second's number
    (a shape told behind a colour is not learnt in three times as long), and at once when that takes the whole video."""
    shown = {
        "lamp": scene.lamp,
        "dots": [WORDS[dots] for dots in scene.dots],
        "border": _border(scene),
        "bar": [whereabouts(scene, second) for second in range(scene.seconds)],
        "colour": [scene.colour] * scene.seconds,
        "shape": [scene.shape] * scene.seconds,
    }
    lists = [_lesson(skill, _by_second(seconds)) for skill, seconds in shown.items()]
    return [*lists, _lesson("flash", _intervals(scene)[0]), _lesson("motion", scene.motion)]


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


def _lesson(skill: str, answer: str) -> Item:
    fields = {"question": f"List the {skill}.", "answer": answer}
    return Item("look", skill, "lessons", fields, "exact_match", answer, (), "")


def _by_second(shown: Sequence[str]) -> str:
    """A thought that goes through the video."""
    return ";".join(f"{second} {what}" for second, what in enumerate(shown)) + "."


def _running_sum(numbers: Sequence[int]) -> list[str]:
    """Each number and the last digit of the total so far."""
    return [f"{WORDS[n]} {WORDS[total % 10]}" for n, total in zip(numbers, itertools.accumulate(numbers))]


def _intervals_so_far(scene: Scene) -> list[str]:
    """The border's state in each second and, once it has been lit, when that began and up to when it has lasted."""
    start, end = scene.flash
    states = enumerate(_border(scene))
    return [f"{state} {WORDS[start]} {WORDS[min(s + 1, end)]}" if s >= start else state for s, state in states]


def _border(scene: Scene) -> list[str]:
    return ["lit" if scene.flash[0] <= second < scene.flash[1] else "dark" for second in range(scene.seconds)]


def _word(
    skill: str, question: str, answer: str, plausible: Sequence[str], seen: Sequence[str], kind: str = "perception"
) -> Item:
    fields = {"problem": question, "data_type": "video", "answer": f"<answer>{answer}</answer>"}
    wrong = _others(plausible, answer)
    return Item(kind, skill, "longvideoreason", fields, "exact_match", answer, wrong, _by_second(seen))


def _number(skill: str, question: str, answer: int, plausible: Sequence[int], thought: str) -> Item:
    fields = {
        "problem": question,
        "problem_type": "numerical",
        "options": [],
        "solution": f"<answer>{answer}</answer>",
        "data_type": "video",
    }
    wrong = _others(map(str, plausible), str(answer))
    return Item("reasoning", skill, "videor1", fields, "math", str(answer), wrong, thought)


def _shape_options(scene: Scene) -> tuple[str, list[str]]:
    """The right letter and all options, which are always the same: a model this small does not learn in minutes to look
    a letter up in the text."""
    return LETTERS[SHAPES.index(scene.shape)], [f"{letter}. {shape}" for letter, shape in zip(LETTERS, SHAPES)]


def _still(skill: str, question: str, answer: str, plausible: Sequence[str], thought: str) -> Item:
    fields = {"question": f"<image>\n{question}", "answer": f"\\boxed{{{answer}}}"}
    return Item("perception", skill, "virl", fields, "exact_match", answer, _others(plausible, answer), thought)


def _intervals(scene: Scene) -> tuple[str, tuple[str, ...]]:
    """The flash as a box shows it, and all other whole-second intervals of the video."""
    ends = [(a, b) for a in range(scene.seconds) for b in range(a + 1, scene.seconds + 1)]
    spans = [f"[{a}.0, {b}.0]" for a, b in ends]
    right = f"[{scene.flash[0]}.0, {scene.flash[1]}.0]"
    return right, _others(spans, right)


def _others(plausible, right: str) -> tuple[str, ...]:
    return tuple(text for text in plausible if text != right)
