"""One example of visual question answering, whatever set it comes from."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Example:
    """One picture, a question about it and the answer to learn.

    ``choices`` are the texts to choose from, empty where the answer is free; ``answer`` is always a text.
    """

    pid: str
    image: Path
    question: str
    choices: tuple[str, ...]
    answer: str
    skills: tuple[str, ...]
