"""Small scenes that a seed decides and a renderer draws: a sign, a bar, a lamp, dots, and a border that lights up.

Everything a question can ask about is a field of `Scene`, so every answer follows from the scene, never from pixels.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

SHAPES = ("square", "ring", "triangle", "cross")
COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 215, 45),
    "white": (240, 240, 240),
    "purple": (165, 50, 205),
}
LAMPS = ("red", "green", "blue", "yellow")
MOTIONS = ("left", "right", "still")
FRAMES_PER_SECOND = 4
SIZE = 64  # pixels; every length below is in 64ths of the picture's side
_INSIDE = (3, 61, 3, 61)  # what the border leaves free
# Each thing has a quarter of the picture to itself; bar and dots are black and white there. The more a thing moves the
# features of fresh vision mergers, the sooner it is learnt.
_SIGN, _RADIUS = (4, 30, 4, 30), 11
_TRACK, _BAR, _BAR_WIDTH, _REACH = (4, 30, 33, 61), (6, 28), 10, (38, 56)
_LAMP, _RIM = (34, 60, 4, 30), 2
_BOARD = (33, 61, 33, 61)
# Number of dots -> their radius and middles. Patterns of their own, as on a die: four steps along one line, a dot more
# each, are told apart much later.
_DOTS = {
    1: (11, ((47, 47),)),
    2: (8, ((40, 54), (54, 40))),
    3: (6.5, ((40, 40), (40, 54), (54, 47))),
    4: (5, ((40, 40), (40, 54), (54, 40), (54, 54))),
}


@dataclasses.dataclass(frozen=True)
class Scene:
    """What happens in one video.

    Attributes:
        seconds: length, 4 to 6.
        shape, colour: what the sign shows in black, and the sign's own colour.
        motion: where the bar goes over the whole video.
        lamp: the lamp's colour in each second; at least three different ones.
        dots: how many dots each second shows, 1 to 4.
        flash: [start, end) in whole seconds during which the border is lit.
        place: where a still bar stands, 0 (left) to 1 (right).
        brightness: factor on all colours.
        texture: seed of the background's faint noise.
    """

    seconds: int
    shape: str
    colour: str
    motion: str
    lamp: tuple[str, ...]
    dots: tuple[int, ...]
    flash: tuple[int, int]
    place: float
    brightness: float
    texture: int


def make_scene(seed: int) -> Scene:
    """The scene of a seed: the same on every machine."""
    rng = np.random.default_rng(seed)
    seconds = int(rng.integers(4, 7))
    length = int(rng.integers(1, seconds))
    start = int(rng.integers(0, seconds - length + 1))
    return Scene(
        seconds=seconds,
        shape=str(rng.choice(SHAPES)),
        colour=str(rng.choice(list(COLOURS))),
        motion=str(rng.choice(MOTIONS)),
        lamp=_lamp(rng, seconds),
        dots=tuple(int(n) for n in rng.integers(1, 5, seconds)),
        flash=(start, start + length),
        place=float(rng.random()),
        brightness=float(rng.uniform(0.85, 1.0)),
        texture=int(rng.integers(2**31)),
    )


def _lamp(rng: np.random.Generator, seconds: int) -> tuple[str, ...]:
    """Three or four colours, each at least once; one is often favoured so that counts spread."""
    palette = [str(colour) for colour in rng.permutation(LAMPS)[: rng.integers(3, 5)]]
    favours = rng.random() < 0.6
    extra = [palette[0] if favours else str(rng.choice(palette)) for _ in range(seconds - len(palette))]
    return tuple(str(colour) for colour in rng.permutation(palette + extra))


def render(scene: Scene, size: int = SIZE, fps: int = FRAMES_PER_SECOND) -> UInt8[ndarray, "T H W 3"]:
    """All frames of a scene: `scene.seconds * fps` pictures of `size` x `size`."""
    backdrops = [_backdrop(scene, second, size) for second in range(scene.seconds)]
    count = scene.seconds * fps
    frames = [_with_bar(scene, backdrops[i // fps], i / (count - 1)) for i in range(count)]
    return np.stack(frames)


def render_still(scene: Scene, second: int, size: int = SIZE) -> UInt8[ndarray, "H W 3"]:
    """The picture in the middle of one second."""
    return _with_bar(scene, _backdrop(scene, second, size), (second + 0.5) / scene.seconds)


def whereabouts(scene: Scene, second: int) -> str:
    """Where the bar is in the middle of a second: left, middle or right."""
    where = _where(scene, (second + 0.5) / scene.seconds)
    return ("left", "middle", "right")[min(int(where * 3), 2)]


def _backdrop(scene: Scene, second: int, size: int) -> Float[ndarray, "H W 3"]:
    """Everything but the bar, which overlaps nothing and is drawn last."""
    rng = np.random.default_rng(scene.texture)
    frame = rng.uniform(118, 138, 3) + rng.normal(0, 3, (size, size, 1))
    rows, columns = _grid(size)
    frame[_box(rows, columns, _SIGN, 0)] = COLOURS[scene.colour]
    frame[_shape(scene.shape, rows - (_SIGN[0] + _SIGN[1]) / 2, columns - (_SIGN[2] + _SIGN[3]) / 2)] = 0
    frame[_box(rows, columns, _LAMP, _RIM)] = 0
    frame[_box(rows, columns, _LAMP, 0)] = COLOURS[scene.lamp[second]]
    frame[_box(rows, columns, _TRACK, 0)] = 235
    frame[_box(rows, columns, _BOARD, 0)] = 20
    radius, middles = _DOTS[scene.dots[second]]
    for row, column in middles:
        frame[np.hypot(rows - row, columns - column) <= radius] = 235
    if scene.flash[0] <= second < scene.flash[1]:
        frame[~_box(rows, columns, _INSIDE, 0)] = 255
    return frame


def _where(scene: Scene, progress: float) -> float:
    """The bar's place, 0 (left) to 1 (right), when `progress` of the video has passed."""
    return {"left": 1 - progress, "right": progress, "still": scene.place}[scene.motion]


def _with_bar(scene: Scene, backdrop: Float[ndarray, "H W 3"], progress: float) -> UInt8[ndarray, "H W 3"]:
    middle = _REACH[0] + _where(scene, progress) * (_REACH[1] - _REACH[0])
    rows, columns = _grid(len(backdrop))
    frame = backdrop.copy()
    half = _BAR_WIDTH / 2
    frame[_box(rows, columns, (*_BAR, middle - half, middle + half), 0)] = 20
    return np.clip(np.rint(frame * scene.brightness), 0, 255).astype(np.uint8)


def _grid(size: int) -> tuple[Float[ndarray, "H 1"], Float[ndarray, "1 W"]]:
    """Rows and columns of the pixels' middles, in 64ths of the side."""
    rows, columns = np.ogrid[:size, :size]
    return (rows + 0.5) * (SIZE / size), (columns + 0.5) * (SIZE / size)


def _box(rows: Float[ndarray, "H 1"], columns: Float[ndarray, "1 W"], box: tuple, margin: int) -> Bool[ndarray, "H W"]:
    top, bottom, left, right = box
    inside = (rows >= top - margin) & (rows < bottom + margin)
    return inside & (columns >= left - margin) & (columns < right + margin)


def _shape(shape: str, down: Float[ndarray, "H 1"], right: Float[ndarray, "1 W"]) -> Bool[ndarray, "H W"]:
    """Pixels of a shape, given their offsets from its middle."""
    down, right = down / _RADIUS, np.abs(right) / _RADIUS
    if shape == "square":
        return (np.abs(down) <= 0.9) & (right <= 0.9)
    if shape == "ring":
        return (np.hypot(down, right) <= 1) & (np.hypot(down, right) >= 0.6)
    if shape == "triangle":
        return (np.abs(down) <= 1) & (right <= (down + 1) / 2)
    long, thin = np.maximum(np.abs(down), right), np.minimum(np.abs(down), right)
    return (long <= 1) & (thin <= 0.3)
