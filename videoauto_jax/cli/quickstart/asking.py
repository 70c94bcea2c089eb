"""Which questions a split asks, about which scenes."""

import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from videoauto_jax.cli.quickstart.questions import IMAGE_QUESTIONS, VIDEO_QUESTIONS, Item, digits, look
from videoauto_jax.cli.quickstart.scene import make_scene
from videoauto_jax.cli.quickstart.spec import MOST_SCENES, WorldSpec
from videoauto_jax.cli.quickstart.video_file import MediaFile

# Ranges of scene seeds, and of the seeds of questions about them, that never meet.
RANGES = ("train videos", "heldout videos", "train images", "heldout images", "train text", "heldout text")

Asked = tuple[str, Item, MediaFile | None]  # id, question, what it is about


def questions(folder: Path, split: str, seed: int, spec: WorldSpec) -> Iterator[Asked]:
    """All questions of `train` or `heldout`: about videos, about images, text only."""
    videos, each = (spec.train_videos, spec.train_questions)
    if split == "heldout":
        videos, each = (spec.heldout_videos, spec.heldout_questions)
    total = videos * each / (1 - spec.image_share - spec.text_share)
    yield from _about_videos(folder, split, seed, _deal(spec.skills, videos, each, _rng(seed, f"{split} videos")))
    yield from _about_images(folder, split, seed, round(total * spec.image_share))
    yield from _text_only(split, seed, round(total * spec.text_share))


def lessons(files: Iterable[MediaFile]) -> Iterator[Asked]:
    """What the videos among the files show."""
    for file in files:
        if file.path.suffix == ".mp4":
            yield from ((f"{file.path.stem}-{item.skill}", item, file) for item in look(make_scene(file.seed)))


def _about_videos(folder: Path, split: str, seed: int, hands: list[list[str]]) -> Iterator[Asked]:
    for i, hand in enumerate(hands):
        file = MediaFile(folder / "videos" / f"{split}_{i:05}.mp4", _scene_seed(seed, f"{split} videos", i))
        scene, rng = make_scene(file.seed), _rng(seed, f"{split} videos", i)
        for skill in hand:
            yield f"{split}-{i:05}-{skill}", VIDEO_QUESTIONS[skill](scene, rng), file


def _about_images(folder: Path, split: str, seed: int, count: int) -> Iterator[Asked]:
    makers = list(IMAGE_QUESTIONS.values())
    for i in range(count):
        scene_seed = _scene_seed(seed, f"{split} images", i)
        scene = make_scene(scene_seed)
        second = i % scene.seconds
        file = MediaFile(folder / "images" / f"{split}_{i:05}.png", scene_seed, second)
        item = makers[i % len(makers)](scene, second)
        yield f"{split}-{i:05}-{item.skill}", item, file


def _text_only(split: str, seed: int, count: int) -> Iterator[Asked]:
    rng = _rng(seed, f"{split} text")
    for i in range(count):
        while True:
            numbers = rng.integers(1, 5, rng.integers(4, 7)).tolist()
            # A fifth of all sums is held out.
            if (zlib.crc32(bytes(numbers)) % 5 == 0) == (split == "heldout"):
                break
        yield f"{split}-{i:05}-digits", digits(numbers), None


def _deal(skills: tuple[str, ...], hands: int, each: int, rng: np.random.Generator) -> list[list[str]]:
    """Deals skills from shuffled decks: all equally often, none twice in a hand."""
    deck: list[str] = []
    dealt = []
    for _ in range(hands):
        hand: list[str] = []
        while len(hand) < each:
            if set(deck) <= set(hand):
                deck += rng.permutation(skills).tolist()
            card = next(skill for skill in deck if skill not in hand)
            deck.remove(card)
            hand.append(card)
        dealt.append(hand)
    return dealt


def _scene_seed(seed: int, range_: str, index: int) -> int:
    return (seed * len(RANGES) + RANGES.index(range_)) * MOST_SCENES + index


def _rng(seed: int, range_: str, *index: int) -> np.random.Generator:
    return np.random.default_rng([seed, RANGES.index(range_), *index])
