"""Questions and demonstrations against the scenes they are about: answers and steps are worked out anew here."""

import json
import re
from collections import Counter
from itertools import accumulate

import numpy as np
import pytest
from scipy.ndimage import label

from videoauto_jax.cli.quickstart.demonstrations import DemonstrationMix, demonstration
from videoauto_jax.cli.quickstart.questions import IMAGE_QUESTIONS, ORDINALS, VIDEO_QUESTIONS, WORDS, digits, lessons
from videoauto_jax.cli.quickstart.scene import FRAMES_PER_SECOND, make_scene, render, render_still
from videoauto_jax.protocol import FALLBACK_ANSWER, parse_response

SCENES = [make_scene(seed) for seed in range(600)]


def ask(skill):
    rng = np.random.default_rng(1)
    return [(scene, VIDEO_QUESTIONS[skill](scene, rng)) for scene in SCENES]


def option(item):
    """Text of the option that the answer's letter names."""
    return dict(option.split(". ") for option in item.fields["options"])[item.answer[0]]


def test_scenes_keep_their_promises_and_their_seed():
    assert [make_scene(seed) for seed in range(600)] == SCENES and len(set(SCENES)) == 600
    for scene in SCENES:
        start, end = scene.flash
        assert 4 <= scene.seconds <= 6 and 0 <= start < end <= scene.seconds and end - start < scene.seconds
        assert len(scene.lamp) == len(scene.dots) == scene.seconds
        assert len(set(scene.lamp)) >= 3 and set(scene.dots) <= {1, 2, 3, 4}


def test_pictures_show_what_the_scene_says():
    for scene in SCENES[:40]:
        frames = render(scene)
        assert frames.shape == (scene.seconds * FRAMES_PER_SECOND, 64, 64, 3) and frames.dtype == np.uint8
        for second in range(scene.seconds):
            for picture in (frames[second * FRAMES_PER_SECOND], render_still(scene, second)):
                assert read_second(picture) == (
                    scene.lamp[second],
                    scene.dots[second],
                    scene.flash[0] <= second < scene.flash[1],
                )
        first, last = middle_of_bar(frames[0]), middle_of_bar(frames[-1])
        moves = {"left": first > last + 12, "right": first < last - 12, "still": abs(first - last) < 1}
        assert moves[scene.motion]


def read_second(picture):
    """(lamp, dots, border lit) of a picture, from its pixels."""
    red, green, blue = picture[47, 17].astype(int)
    lamp = "blue" if blue > 150 else ("yellow" if green > 150 else "red") if red > 150 else "green"
    dots = label(picture[34:60, 34:60].min(-1) > 150)[1]  # connected patches of white
    return lamp, dots, bool(picture[0, 32].min() > 150)


def middle_of_bar(picture):
    return np.argwhere(picture[6:28, 32:61].max(-1) < 60)[:, 1].mean()


def test_signs_show_their_shape_in_black_on_their_colour():
    looks = {
        "square": (True, True, True),
        "ring": (False, False, False),
        "triangle": (True, False, True),
        "cross": (True, False, False),
    }
    for scene in SCENES[:80]:
        sign = render_still(scene, 0)[4:30, 4:30].max(-1) < 60
        assert (sign[13, 13], sign[4, 5], sign[21, 5]) == looks[scene.shape]


@pytest.mark.parametrize("skill, truth", [("colour", "colour"), ("object", "shape"), ("direction", "motion")])
def test_words_name_what_is_seen(skill, truth):
    for scene, item in ask(skill):
        assert item.answer == getattr(scene, truth) and item.fields["answer"] == f"<answer>{item.answer}</answer>"
        assert item.answer not in item.wrong
        if skill != "direction":
            assert steps(item, [item.answer] * scene.seconds)


def test_lessons_say_what_is_seen():
    for scene in SCENES[:40]:
        *lists, flash, motion = lessons(scene)
        listed = {item.skill: item.answer.rstrip(".").split(";") for item in lists}
        told = {skill: [step.partition(" ")[2] for step in seconds] for skill, seconds in listed.items()}
        assert told["lamp"] == list(scene.lamp) and told["dots"] == [WORDS[dots] for dots in scene.dots]
        assert told["colour"] == [scene.colour] * scene.seconds and told["shape"] == [scene.shape] * scene.seconds
        assert json.loads(flash.answer) == list(scene.flash) and motion.answer == scene.motion
        ends = {"left": ("right", "left"), "right": ("left", "right")}
        assert ends.get(scene.motion, (told["bar"][0],) * 2) == (told["bar"][0], told["bar"][-1])


def test_choices_name_what_is_seen():
    for scene, item in ask("grounded"):
        assert option(item) == scene.shape
        texts = [text.partition(". ")[2] for text in item.fields["options"]]
        assert len(set(texts)) == len(texts) and scene.shape in item.careful and item.answer not in item.wrong


def test_grounding_answers_are_the_flash():
    for skill, path in (("when", lambda f: f["timestamps"]), ("grounded", lambda f: f["timestamps"][0])):
        for scene, item in ask(skill):
            assert path(item.fields) == list(scene.flash)
            assert re.findall(r"\d\.0", item.answer) == [f"{t}.0" for t in scene.flash]


def steps(item, states):
    """What a careful thought says, second by second; every second is there and says first what is shown."""
    told = [step.split(" ") for step in item.careful.partition(".")[0].split(";")]
    assert [(step[0], step[1]) for step in told] == [(str(second), state) for second, state in enumerate(states)]
    return [step[2:] for step in told]


def test_careful_sums_are_right_at_every_step():
    for scene, item in ask("sum"):
        told = steps(item, [WORDS[dots] for dots in scene.dots])
        assert [WORDS.index(total) for (total,) in told] == [t % 10 for t in accumulate(scene.dots)]
        assert item.answer == str(sum(scene.dots) % 10)


def test_careful_counts_are_right_at_every_step():
    for scene, item in ask("count"):
        target = re.search(r"lamp (\w+)\?", item.fields["problem"])[1]
        told = steps(item, scene.lamp)
        assert [asked for asked, _ in told] == [target] * scene.seconds
        assert [WORDS.index(n) for _, n in told] == list(accumulate(lamp == target for lamp in scene.lamp))
        assert item.answer == str(scene.lamp.count(target))


def test_orders_are_those_of_first_appearance():
    for scene, item in ask("order"):
        asked = re.search(r"is the (\w+) to appear", item.fields["problem"])[1]
        told = steps(item, scene.lamp)
        ranks = [rank for rank, _, _ in told]
        assert ranks == [ORDINALS[len(set(scene.lamp[: scene.lamp.index(lamp)]))] for lamp in scene.lamp]
        assert item.answer == scene.lamp[ranks.index(asked)] and item.answer not in item.wrong
        for second, (_, wanted, so_far) in enumerate(told):
            assert wanted == asked and so_far == (item.answer if asked in ranks[: second + 1] else "none")


def test_careful_groundings_track_the_flash():
    for scene, item in ask("when"):
        lit = [scene.flash[0] <= second < scene.flash[1] for second in range(scene.seconds)]
        told = steps(item, ["lit" if on else "dark" for on in lit])
        for second, said in enumerate(told):
            seen = [s for s in range(second + 1) if lit[s]]
            assert [WORDS.index(word) for word in said] == ([seen[0], seen[-1] + 1] if seen else [])


def test_stills_and_text():
    scene = SCENES[0]
    items = {skill: make(scene, 2) for skill, make in IMAGE_QUESTIONS.items()}
    assert items["still_colour"].answer == scene.colour and items["still_dots"].answer == WORDS[scene.dots[2]]
    assert option(items["still_object"]) == scene.shape
    item = digits([3, 4, 2, 4])
    assert "0 three, 1 four, 2 two, 3 four." in item.fields["prompt"] and item.fields["solution"] == "3"
    assert item.careful == "0 three three;1 four seven;2 two nine;3 four three."


@pytest.mark.parametrize(
    "skill, least, most",
    [
        ("colour", 0.12, 0.22),
        *[(skill, 0.19, 0.31) for skill in ("object", "order")],
        ("direction", 0.27, 0.40),
        ("sum", 0.05, 0.16),
        ("count", 0.01, 0.45),
    ],
)
def test_no_answer_can_be_guessed_from_its_frequency(skill, least, most):
    shares = Counter(item.answer for _, item in ask(skill))
    assert min(shares.values()) / len(SCENES) > least and max(shares.values()) / len(SCENES) < most


def test_demonstrations_follow_the_grammar_and_the_mix():
    mix = DemonstrationMix(reasoning_fallback=0.4, reasoning_first_right=0.3, careful=0.6, hurried_right=0.2)
    rng = np.random.default_rng(0)
    tally = Counter()
    for _, item in ask("sum") * 4:
        parsed = parse_response(demonstration(item, rng, mix))
        assert parsed.well_formed
        careful = parsed.thought == item.careful
        fallback = parsed.first == FALLBACK_ANSWER
        tally["fallback"] += fallback
        tally["first right"] += parsed.first == item.answer
        tally["careful"] += careful
        tally["careful right"] += careful and parsed.second == item.answer
        tally["hurried right"] += not careful and parsed.second == item.answer
        assert careful or parsed.thought == f"It looks like {parsed.second}."
    shares = {name: count / 2400 for name, count in tally.items()}
    assert shares["careful right"] == shares["careful"]
    expected = {"fallback": 0.4, "first right": 0.6 * 0.3, "careful": 0.6, "hurried right": 0.4 * 0.2}
    assert {name: shares[name] for name in expected} == pytest.approx(expected, abs=0.04)


def test_perception_is_demonstrated_right():
    rng = np.random.default_rng(0)
    for skill in ("colour", "when", "grounded"):
        for _, item in ask(skill)[:100]:
            parsed = parse_response(demonstration(item, rng, DemonstrationMix(perception_fallback=0.5)))
            assert parsed.second == item.answer and parsed.first in (item.answer, FALLBACK_ANSWER)
