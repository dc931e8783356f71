"""Shapes, colours and the two drawing styles, on a canvas of 64 x 64 pixels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

from PIL import Image, ImageDraw

Domain = Literal["A", "B"]
Rgb = tuple[int, int, int]
Point = tuple[float, float]

SIDE_PX = 64
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "pentagon")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "brown")

_SATURATED: Mapping[str, Rgb] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (235, 205, 30),
    "purple": (140, 50, 180),
    "orange": (240, 130, 20),
    "cyan": (40, 190, 210),
    "brown": (120, 75, 35),
}
_PASTEL: Mapping[str, Rgb] = {
    "red": (255, 150, 165),
    "green": (190, 255, 140),
    "blue": (140, 170, 255),
    "yellow": (255, 250, 170),
    "purple": (225, 160, 255),
    "orange": (255, 195, 120),
    "cyan": (165, 255, 245),
    "brown": (190, 160, 130),
}
# In domain B each skill has a ground of its own, so that clients with other skills see other pictures.
_DARK_GROUNDS: Mapping[str, Rgb] = {
    "counting": (20, 20, 40),
    "comparing": (40, 20, 20),
    "geometry": (15, 40, 25),
    "spatial": (35, 35, 35),
    "pattern": (10, 10, 10),
    "time": (45, 30, 60),
    "fraction": (20, 45, 60),
    "scene": (50, 45, 20),
}


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one picture is drawn. ``is_filled`` False draws outlines."""

    palette: Mapping[str, Rgb]
    ground: Rgb
    ink: Rgb
    is_filled: bool
    line_px: int


def style_of(domain: Domain, skill: str, random: Random) -> Style:
    if domain == "A":
        ground, ink = _jitter((245, 245, 245), 8, random), _jitter((30, 30, 30), 12, random)
        return Style(palette=_SATURATED, ground=ground, ink=ink, is_filled=True, line_px=1)
    ground, ink = _jitter(_DARK_GROUNDS[skill], 10, random), _jitter((230, 230, 230), 12, random)
    return Style(palette=_PASTEL, ground=ground, ink=ink, is_filled=False, line_px=2)


class Canvas:
    """One picture being drawn; colours vary a little from one use to the next."""

    def __init__(self, style: Style, random: Random) -> None:
        self.style = style
        self.image = Image.new("RGB", (SIDE_PX, SIDE_PX), style.ground)
        self.pen = ImageDraw.Draw(self.image)
        self._random = random

    def color(self, name: str) -> Rgb:
        return _jitter(self.style.palette[name], 12, self._random)

    def icon(self, shape: str, color: str, center: Point, radius_px: float) -> None:
        rgb = self.color(color)
        fill = rgb if self.style.is_filled else None
        x, y = center
        r = radius_px
        if shape == "circle":
            self.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=rgb, width=self.style.line_px)
        else:
            self.pen.polygon(outline(shape, center, r), fill=fill, outline=rgb, width=self.style.line_px)

    def line(self, points: list[Point], width_px: int = 1) -> None:
        self.pen.line(points, fill=self.style.ink, width=width_px)


def outline(shape: str, center: Point, radius_px: float) -> list[Point]:
    """The corners of a shape of about ``radius_px``; a circle has none and is not asked for."""
    x, y = center
    return [(x + radius_px * dx, y + radius_px * dy) for dx, dy in _unit_outline(shape)]


def _unit_outline(shape: str) -> list[Point]:
    match shape:
        case "square":
            return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
        case "triangle":
            return [(dx * 1.1, dy * 1.1 + 0.15) for dx, dy in _regular(3)]
        case "star":
            outer, inner = _regular(5), [(-dx * 0.42, -dy * 0.42) for dx, dy in _regular(5)]
            # The inner corners lie opposite the outer ones, two and a half corners on.
            return [(dx * 1.15, dy * 1.15) for i in range(5) for dx, dy in (outer[i], inner[(i + 3) % 5])]
        case "heart":
            return [_heart_point(2 * math.pi * i / 20) for i in range(20)]
        case "diamond":
            return [(0, -1.15), (0.7, 0), (0, 1.15), (-0.7, 0)]
        case "cross":
            corners = [(-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35)]
            return [*corners, *[(-dx, -dy) for dx, dy in corners]]
        case "pentagon":
            return [(dx * 1.05, dy * 1.05) for dx, dy in _regular(5)]
        case _:
            raise AssertionError(f"no outline for {shape}")


def _regular(corner_count: int) -> list[Point]:
    angles = [2 * math.pi * i / corner_count - math.pi / 2 for i in range(corner_count)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _heart_point(t: float) -> Point:
    return math.sin(t) ** 3, -0.065 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t))


def _jitter(rgb: Rgb, amount: int, random: Random) -> Rgb:
    red, green, blue = (max(0, min(255, value + random.randint(-amount, amount))) for value in rgb)
    return red, green, blue
