"""One example of visual question answering, whatever set it comes from."""

from dataclasses import dataclass
from pathlib import Path

from fednano.prompt import Prompt


@dataclass(frozen=True, kw_only=True)
class Example:
    """Pictures, a question about them and the answer to learn.

    ``images`` has the question's picture first, if it has one, then those of the choices. ``choices`` are the texts to
    choose from, empty texts where the choices are pictures, and none where the answer is free. ``answer`` is a text:
    the letter of a choice where ``asks_letter``. ``task`` is what it counts as in its set's scores, such as
    fill_in_blank; ``topic`` is what a non-IID split goes by; ``skills`` are all it counts for.
    """

    pid: str
    images: tuple[Path, ...]
    question: str
    choices: tuple[str, ...] = ()
    answer: str
    asks_letter: bool = False
    hint: str = ""
    task: str = ""
    topic: str = ""
    skills: tuple[str, ...] = ()

    @property
    def prompt(self) -> Prompt:
        return Prompt(
            question=self.question,
            choices=self.choices,
            hint=self.hint,
            image_count=len(self.images),
            asks_letter=self.asks_letter,
        )
