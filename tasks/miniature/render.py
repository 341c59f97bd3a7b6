"""Draw a scene as 60 x 60 RGB pixels with integer arithmetic in NumPy: the same bytes whatever the library versions."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from tasks.miniature import VERSION
from tasks.miniature.scene import COLORS, Scene
from tasks.questions import Pixels

SIDE = 60
CELL = SIDE // 3
RADIUS = {"small": 5, "large": 8}
PALETTE = dict(
    zip(COLORS, ((220, 40, 40), (40, 70, 220), (30, 160, 60), (230, 210, 40), (150, 50, 190), (245, 140, 30)), strict=True)
)
INK = (20, 20, 60)
# How hard a picture is to read. Clean pictures are read without error even by the smallest model, and a teacher that is
# never in doubt has nothing to teach beyond its labels: tints overlap, pixels are noisy, ink is missing.
BACKGROUND = (170, 256)
TINT = 45
SHIFT = 2
NOISE = 60
FADED = 90  # of 256: share of ink that is missing
#: Corner points in hundredths of the radius, clockwise, y down.
POLYGONS = {
    "triangle": ((0, -100), (-100, 80), (100, 80)),
    "star": (
        (0, -100), (25, -34), (95, -31), (40, 13), (59, 81), (0, 42), (-59, 81), (-40, 13), (-95, -31), (-25, -34),
    ),
}  # fmt: skip

Mask = NDArray[np.bool_]


@functools.cache
def glyphs() -> dict[str, Mask]:
    """Return the shipped font: a boolean [7, 5] mask per capital letter and digit."""
    rows = yaml.safe_load(Path(__file__).with_name("glyphs.yaml").read_text(encoding="utf-8"))
    return {sign: np.array([[dot == "#" for dot in line] for line in text.split()]) for sign, text in rows.items()}


def _inside(polygon: tuple[tuple[int, int], ...], x: NDArray[np.int64], y: NDArray[np.int64]) -> Mask:
    """Even-odd rule with integer cross products; the polygon and the points are in the same units."""
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        crosses = (y0 > y) != (y1 > y)
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        inside ^= crosses & ((side > 0) == (y1 > y0))
    return inside


@functools.cache
def shape_mask(kind: str, size: str) -> Mask:
    """Return the pixels of a shape, bool [CELL + 1, CELL + 1], its centre in the middle pixel."""
    radius, half = RADIUS[size], CELL // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.int64)
    square = x * x + y * y
    if kind == "circle":
        return np.asarray(square <= radius * radius)
    if kind == "ring":
        return np.asarray((square <= radius * radius) & (4 * square > radius * radius))
    if kind == "square":
        return np.asarray((100 * abs(x) <= 85 * radius) & (100 * abs(y) <= 85 * radius))
    if kind == "cross":
        arm = (100 * abs(x) <= 32 * radius) | (100 * abs(y) <= 32 * radius)
        return np.asarray(arm & (abs(x) <= radius) & (abs(y) <= radius))
    return _inside(POLYGONS[kind], x * 100 // radius, y * 100 // radius)


def _write(canvas: NDArray[np.int16], text: str, row: int, rng: random.Random) -> None:
    """Write ``text`` in capitals at twice the glyph size, roughly centred in a row of the grid."""
    letters = [np.pad(glyphs()[sign], ((0, 0), (0, 1))) for sign in text.upper()]
    mask = np.hstack(letters)[:, :-1].repeat(2, axis=0).repeat(2, axis=1)
    height, width = mask.shape
    left = (SIDE - width) // 2 + rng.randint(-2, 2)
    top = row * CELL + (CELL - height) // 2 + rng.randint(-1, 1)
    written = mask & (np.frombuffer(rng.randbytes(mask.size), dtype=np.uint8).reshape(mask.shape) >= FADED)
    canvas[top : top + height, left : left + width][written] = INK


def render(scene: Scene) -> Pixels:
    """Return the picture of a scene, uint8 [60, 60, 3]. Jitter and noise come from the scene's id alone."""
    rng = random.Random(f"miniature {VERSION} picture {scene.id}")
    canvas = np.full((SIDE, SIDE, 3), rng.randrange(*BACKGROUND), dtype=np.int16)
    for thing in scene.things:
        mask = shape_mask(thing.kind, thing.size)
        top = thing.row * CELL + rng.randint(-SHIFT, SHIFT)
        left = thing.column * CELL + rng.randint(-SHIFT, SHIFT)
        color = [value + rng.randint(-TINT, TINT) for value in PALETTE[thing.color]]
        y, x = (index + shift for index, shift in zip(np.nonzero(mask), (top, left), strict=True))
        seen = (y >= 0) & (y < SIDE) & (x >= 0) & (x < SIDE)
        canvas[y[seen], x[seen]] = color
    if scene.text is not None and scene.text_row is not None:
        _write(canvas, scene.text, scene.text_row, rng)
    noise = np.frombuffer(rng.randbytes(canvas.size), dtype=np.uint8).astype(np.int16) % (2 * NOISE + 1) - NOISE
    return (canvas + noise.reshape(canvas.shape)).clip(0, 255).astype(np.uint8)
