from collections import Counter
from random import Random

import pytest

from fednano.data.icons.draw import COLORS, SHAPES
from fednano.data.icons.generate import generate
from fednano.data.icons.scenes import RELATIONS, SKILLS, Scene, draw_scene


def scenes(skill: str, count: int = 200) -> list[Scene]:
    return list(generate(count, "A", 11, [skill]))


def test_the_same_seed_draws_the_same_pictures() -> None:
    first, again, other = ([s.image.tobytes() for s in generate(16, "B", seed)] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_domains_look_different_for_every_skill() -> None:
    for light, dark in zip(generate(8, "A", 0), generate(8, "B", 0), strict=True):
        assert min(light.image.getpixel((0, 0))) > 200 > 100 > max(dark.image.getpixel((0, 0)))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_leaves_ink(shape: str) -> None:
    drawn = next(s for s in scenes("geometry") if s.drawing.answer == shape)
    assert len(set(drawn.image.get_flattened_data())) >= 2


def test_counting_answers_with_the_number_of_icons() -> None:
    assert all(scene.drawing.answer == str(len(scene.drawing.icons)) for scene in scenes("counting"))


def test_comparing_answers_with_the_fuller_half() -> None:
    for scene in scenes("comparing"):
        left = sum(icon.x_px < 32 for icon in scene.drawing.icons)
        right = len(scene.drawing.icons) - left
        assert scene.drawing.answer == ("left" if left > right else "right" if right > left else "same")


def test_spatial_answers_with_where_the_asked_icon_lies() -> None:
    for scene in scenes("spatial"):
        asked, other = scene.drawing.icons
        assert scene.drawing.words == {"shape": asked.shape, "other": other.shape}
        dx, dy = asked.x_px - other.x_px, asked.y_px - other.y_px
        horizontal, vertical = ("left" if dx < 0 else "right"), ("above" if dy < 0 else "below")
        assert scene.drawing.answer == (horizontal if abs(dx) > abs(dy) else vertical)
        assert asked.relation == scene.drawing.answer


def test_scene_asks_for_either_side_so_that_the_shape_must_be_read() -> None:
    sides = Counter()  # type: Counter[int]
    for scene in scenes("scene"):
        left, right = scene.drawing.icons
        asked = [icon for icon in (left, right) if icon.shape == scene.drawing.words["shape"]]
        assert [icon.color for icon in asked] == [scene.drawing.answer]
        assert left.color != right.color
        sides[int(asked[0] is right)] += 1
    assert 70 <= sides[0] <= 130


def test_fraction_and_time_answers_are_written_as_read() -> None:
    assert all("/" in scene.drawing.answer for scene in scenes("fraction"))
    assert {scene.drawing.answer.split(":")[1] for scene in scenes("time")} == {"00", "30"}


@pytest.mark.parametrize(
    ("skill", "answers"),
    [("geometry", SHAPES), ("spatial", RELATIONS), ("pattern", COLORS), ("comparing", ("left", "right", "same"))],
)
def test_every_answer_occurs(skill: str, answers: tuple[str, ...]) -> None:
    assert {scene.drawing.answer for scene in scenes(skill)} == set(answers)


def test_icons_stay_inside_the_picture() -> None:
    for skill in SKILLS:
        for icon in (icon for scene in scenes(skill, 100) for icon in scene.drawing.icons):
            assert 0 < icon.x_px < 64
            assert 0 < icon.y_px < 64


def test_a_skill_named_twice_comes_twice_as_often() -> None:
    drawn = Counter(scene.skill for scene in generate(12, "A", 0, ["time", "time", "scene"]))
    assert drawn == {"time": 8, "scene": 4}


def test_an_unknown_skill_is_a_bug() -> None:
    with pytest.raises(KeyError):
        draw_scene("probability", "A", Random(0))
