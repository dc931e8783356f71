"""What the pictures show: one small function a skill draws a scene and says what is true of it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

from PIL import Image

from fednano.data.icons.draw import COLORS, SHAPES, SIDE_PX, Canvas, Domain, style_of

RELATIONS = ("left", "right", "above", "below")
OPPOSITES: Mapping[str, str] = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True, kw_only=True)
class Icon:
    """One icon as drawn. ``relation`` says where it lies seen from the scene's other icon, if that is asked."""

    shape: str
    color: str
    x_px: float
    y_px: float
    radius_px: float
    relation: str = ""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What a skill drew: words for its questions, attributes to be read off the picture, a caption, the answer."""

    answer: str
    caption: str
    attributes: Mapping[str, str]
    words: Mapping[str, str] = field(default_factory=dict)
    icons: tuple[Icon, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scene:
    skill: str
    image: Image.Image
    drawing: Drawing


def draw_scene(skill: str, domain: Domain, random: Random) -> Scene:
    canvas = Canvas(style_of(domain, skill, random), random)
    drawing = _painters()[skill](canvas, random)
    return Scene(skill=skill, image=canvas.image, drawing=drawing)


Painter = Callable[[Canvas, Random], Drawing]


def _painters() -> dict[str, Painter]:
    return {
        "counting": _counting,
        "comparing": _comparing,
        "geometry": _geometry,
        "spatial": _spatial,
        "pattern": _pattern,
        "time": _time,
        "fraction": _fraction,
        "scene": _scene,
    }


SKILLS = ("counting", "comparing", "geometry", "spatial", "pattern", "time", "fraction", "scene")


def _place(canvas: Canvas, icon: Icon) -> Icon:
    canvas.icon(icon.shape, icon.color, (icon.x_px, icon.y_px), icon.radius_px)
    return icon


def _counting(canvas: Canvas, random: Random) -> Drawing:
    count, shape, color = random.randint(1, 6), random.choice(SHAPES), random.choice(COLORS)
    icons = []
    for cell in random.sample(range(9), count):
        x_px = 11 + 21 * (cell % 3) + random.uniform(-2, 2)
        y_px = 11 + 21 * (cell // 3) + random.uniform(-2, 2)
        icon = Icon(shape=shape, color=color, x_px=x_px, y_px=y_px, radius_px=random.uniform(6, 8))
        icons.append(_place(canvas, icon))
    return Drawing(
        answer=str(count),
        caption=f"{count} {color} {shape}",
        attributes={"count": str(count), "shape": shape, "color": color},
        words={"shape": shape},
        icons=tuple(icons),
    )


def _comparing(canvas: Canvas, random: Random) -> Drawing:
    left, right = random.randint(0, 5), random.randint(0, 5)
    if random.random() < 0.25:
        right = left
    left = left or int(right == 0)
    shape, color = random.choice(SHAPES), random.choice(COLORS)
    canvas.line([(32, 2), (32, 62)], canvas.style.line_px)
    icons = []
    for offset_px, count in ((0, left), (33, right)):
        for cell in random.sample(range(6), count):
            x_px = offset_px + 8 + 15 * (cell % 2) + random.uniform(-1, 1)
            y_px = 11 + 21 * (cell // 2) + random.uniform(-2, 2)
            icon = Icon(shape=shape, color=color, x_px=x_px, y_px=y_px, radius_px=random.uniform(5, 6))
            icons.append(_place(canvas, icon))
    answer = "left" if left > right else "right" if right > left else "same"
    return Drawing(
        answer=answer,
        caption=f"{color} {shape} left {left} right {right}",
        attributes={"left": str(left), "right": str(right), "more": answer, "shape": shape, "color": color},
        icons=tuple(icons),
    )


def _geometry(canvas: Canvas, random: Random) -> Drawing:
    shape, color = random.choice(SHAPES), random.choice(COLORS)
    x_px, y_px, radius_px = 32 + random.uniform(-7, 7), 32 + random.uniform(-7, 7), random.uniform(14, 22)
    icon = _place(canvas, Icon(shape=shape, color=color, x_px=x_px, y_px=y_px, radius_px=radius_px))
    return Drawing(
        answer=shape, caption=f"big {color} {shape}", attributes={"shape": shape, "color": color}, icons=(icon,)
    )


def _spatial(canvas: Canvas, random: Random) -> Drawing:
    (shape, other), relation = random.sample(SHAPES, 2), random.choice(RELATIONS)
    along, across = random.uniform(12, 15), random.uniform(-4, 4)
    steps = {"left": (-along, across), "right": (along, across), "above": (across, -along), "below": (across, along)}
    dx, dy = steps[relation]
    x, y = 32 + random.uniform(-4, 4), 32 + random.uniform(-4, 4)
    icons = []
    for name, sign, seen in ((shape, 1, relation), (other, -1, OPPOSITES[relation])):
        icon = Icon(
            shape=name,
            color=random.choice(COLORS),
            x_px=x + sign * dx,
            y_px=y + sign * dy,
            radius_px=random.uniform(8, 10),
            relation=seen,
        )
        icons.append(_place(canvas, icon))
    return Drawing(
        answer=relation,
        caption=f"{icons[0].color} {shape} {relation} {icons[1].color} {other}",
        attributes=_pair_attributes(icons) | {"axis": "row" if relation in ("left", "right") else "column"},
        words={"shape": shape, "other": other},
        icons=tuple(icons),
    )


def _pair_attributes(icons: list[Icon]) -> dict[str, str]:
    """Both icons' shapes and colours, named in reading order along the axis they differ in."""
    first, second = sorted(icons, key=lambda icon: icon.relation in ("right", "below"))
    return {"shape": first.shape, "color": first.color, "other_shape": second.shape, "other_color": second.color}


def _pattern(canvas: Canvas, random: Random) -> Drawing:
    period = random.choice((2, 3))
    colors, shape = random.sample(COLORS, period), random.choice(SHAPES[:4])
    for i in range(5):
        canvas.icon(shape, colors[i % period], (6 + 10.2 * i, 32 + random.uniform(-1, 1)), 4.3)
    canvas.line([(58, 26), (62, 26), (62, 30), (60, 34)])
    canvas.pen.point((60, 38), fill=canvas.style.ink)
    answer = colors[5 % period]
    return Drawing(
        answer=answer,
        caption=f"row {colors[0]} {colors[1]} {shape} next {answer}",
        attributes={"next": answer, "color": colors[0], "other_color": colors[1], "shape": shape},
    )


def _time(canvas: Canvas, random: Random) -> Drawing:
    hour, is_half, color = random.randint(1, 12), random.random() < 0.5, random.choice(COLORS)
    r, x, y = random.uniform(24, 29), 32 + random.uniform(-2, 2), 32 + random.uniform(-2, 2)
    width_px = 2 + canvas.style.line_px
    canvas.pen.ellipse((x - r, y - r, x + r, y + r), outline=canvas.color(color), width=width_px)

    def hand(turn: float, start: float, end: float, width_px: int) -> None:
        dx, dy = r * math.sin(2 * math.pi * turn), -r * math.cos(2 * math.pi * turn)
        canvas.line([(x + start * dx, y + start * dy), (x + end * dx, y + end * dy)], width_px)

    for mark in range(12):
        hand(mark / 12, 0.85, 0.95, 1)
    hand((hour + 0.5 * is_half) / 12, 0, 0.5, 3)
    hand(0.5 * is_half, 0, 0.8, 1)
    answer = f"{hour}:{'30' if is_half else '00'}"
    return Drawing(
        answer=answer,
        caption=f"{color} clock {answer}",
        attributes={"hour": str(hour), "minute": answer.split(":")[1], "color": color},
    )


def _fraction(canvas: Canvas, random: Random) -> Drawing:
    whole = random.randint(2, 6)
    part, color = random.randint(1, whole - 1), random.choice(COLORS)
    if random.random() < 0.5:
        _pie(canvas, random, part, whole, color)
    else:
        _bar(canvas, random, part, whole, color)
    answer = f"{part}/{whole}"
    return Drawing(
        answer=answer,
        caption=f"{color} {answer} filled",
        attributes={"fraction": answer, "part": str(part), "whole": str(whole), "color": color},
    )


def _pie(canvas: Canvas, random: Random, part: int, whole: int, color: str) -> None:
    r, x, y = random.uniform(22, 29), 32 + random.uniform(-2, 2), 32 + random.uniform(-2, 2)
    for i in range(whole):
        fill = canvas.color(color) if i < part else canvas.style.ground
        start, end = 360 * i / whole - 90, 360 * (i + 1) / whole - 90
        canvas.pen.pieslice((x - r, y - r, x + r, y + r), start, end, fill=fill, outline=canvas.style.ink)


def _bar(canvas: Canvas, random: Random, part: int, whole: int, color: str) -> None:
    width_px, half_px, middle_px = 56 / whole, random.uniform(8, 14), SIDE_PX / 2
    for i in range(whole):
        fill = canvas.color(color) if i < part else canvas.style.ground
        box = (4 + width_px * i, middle_px - half_px, 4 + width_px * (i + 1), middle_px + half_px)
        canvas.pen.rectangle(box, fill=fill, outline=canvas.style.ink)


def _scene(canvas: Canvas, random: Random) -> Drawing:
    shapes, colors = random.sample(SHAPES, 2), random.sample(COLORS, 2)
    icons = []
    for shape, color, x_px in zip(shapes, colors, (random.uniform(12, 20), random.uniform(44, 52)), strict=True):
        y_px, radius_px = random.uniform(14, 50), random.uniform(8, 11)
        icons.append(_place(canvas, Icon(shape=shape, color=color, x_px=x_px, y_px=y_px, radius_px=radius_px)))
    # Either icon may be asked for: who reads only one side of the picture is wrong half of the time.
    asked = random.choice(icons)
    return Drawing(
        answer=asked.color,
        caption=f"{colors[0]} {shapes[0]} {colors[1]} {shapes[1]}",
        attributes={"shape": shapes[0], "color": colors[0], "other_shape": shapes[1], "other_color": colors[1]},
        words={"shape": asked.shape},
        icons=tuple(icons),
    )
