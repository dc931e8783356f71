"""Draws as many scenes as asked, the same ones for the same seed."""

from collections.abc import Iterator, Sequence
from random import Random

from fednano.data.icons.draw import Domain
from fednano.data.icons.scenes import SKILLS, Scene, draw_scene


def generate(count: int, domain: Domain, seed: int, skills: Sequence[str] = SKILLS) -> Iterator[Scene]:
    """``count`` scenes that go through ``skills`` in turn; a skill named twice comes twice as often."""
    random = Random(f"icons/{domain}/{seed}")
    for i in range(count):
        yield draw_scene(skills[i % len(skills)], domain, random)
