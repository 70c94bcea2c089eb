"""How large a world is and what it asks."""

import dataclasses

from videoauto_jax.cli.quickstart.demonstrations import DemonstrationMix
from videoauto_jax.cli.quickstart.questions import VIDEO_QUESTIONS
from videoauto_jax.cli.quickstart.scene import SIZE
from videoauto_jax.errors import ConfigError

MOST_SCENES = 10**6  # of one kind in one split; scene seeds are numbered in blocks of this size


@dataclasses.dataclass(frozen=True)
class WorldSpec:
    """Sizes of a world.

    Attributes:
        train_videos, heldout_videos: scenes shown as videos.
        train_questions, heldout_questions: questions about each of them, all of different skills.
        image_share, text_share: part of all questions that is about images, and that is text only.
        train_skills, heldout_skills: decks from which the questions about videos are dealt; a name that is there more
            often is asked more often.
        size: side of the pictures in pixels.
        study, warmup: how the demonstrations of these stages are drawn. In `study` box 1 is often wrong or declines, so
            that the thought behind it has to look at the video, and cannot copy.
    """

    train_videos: int = 1200
    heldout_videos: int = 300
    train_questions: int = 5
    heldout_questions: int = 2
    image_share: float = 0.1
    text_share: float = 0.1
    train_skills: tuple[str, ...] = (*VIDEO_QUESTIONS, "count", "order", *("direction",) * 2, "when")
    heldout_skills: tuple[str, ...] = (*VIDEO_QUESTIONS, *("colour", "object", "direction") * 2)
    size: int = SIZE
    study: DemonstrationMix = DemonstrationMix(perception_fallback=0.1, perception_first_wrong=0.15, careful=1.0)
    warmup: DemonstrationMix = DemonstrationMix()


STANDARD = WorldSpec()


def check(seed: int, spec: WorldSpec) -> None:
    """Raises ConfigError on sizes that cannot be met, unknown skills or a negative seed."""
    about_videos = 1 - spec.image_share - spec.text_share
    if seed < 0:
        raise ConfigError(f"seed {seed} is negative", where="seed", fix="Use 0 or more")
    if spec.size % 2 or spec.size < 32:
        raise ConfigError(f"pictures of {spec.size} pixels", where="size", fix="Use an even size of 32 or more")
    if min(spec.image_share, spec.text_share) < 0 or about_videos <= 0:
        raise ConfigError("image_share and text_share leave no part for videos", fix="Their sum has to be below 1")
    for split in ("train", "heldout"):
        videos, each, skills = (getattr(spec, f"{split}_{what}") for what in ("videos", "questions", "skills"))
        known = set(skills) & set(VIDEO_QUESTIONS)
        if unknown := sorted(set(skills) - known):
            fix = f"Use {', '.join(VIDEO_QUESTIONS)}"
            raise ConfigError(f"unknown skills: {', '.join(unknown)}", where=f"{split}_skills", fix=fix)
        if not 1 <= each <= len(known):
            where, fix = f"{split}_questions", f"Ask 1 to {len(known)}, as many as there are skills"
            raise ConfigError(f"{each} questions about a video", where=where, fix=fix)
        if not 0 <= videos * each / about_videos < MOST_SCENES:
            where, fix = f"{split}_videos", f"A split asks at most {MOST_SCENES} questions"
            raise ConfigError(f"{videos} videos", where=where, fix=fix)
