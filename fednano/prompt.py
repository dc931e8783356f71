"""What is asked of the model, before a family of models puts it into its own form."""

from dataclasses import dataclass

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question with all that belongs to it. Where ``asks_letter``, the answer is the letter of a choice.

    ``image_count`` counts the question's picture first, then the pictures of the choices. A choice that is a picture
    has the empty text.
    """

    question: str
    choices: tuple[str, ...] = ()
    hint: str = ""
    image_count: int = 1
    asks_letter: bool = False


def cqm_a(prompt: Prompt) -> str:
    """The prompt as LLaVA writes ScienceQA's (CQM-A), with ``<image>`` where a picture's tokens go.

    The pictures of choices stand behind their letters, as no official form says. Free answers are asked for as LLaVA
    asks for short ones.
    """
    parts = ["<image>\n"] if prompt.image_count else []
    parts += [f"Context: {prompt.hint}\n"] if prompt.hint else []
    parts.append(prompt.question)
    pictured = prompt.image_count > 1
    parts += [f"\n{letter}. {choice or ('<image>' if pictured else '')}" for letter, choice in _lettered(prompt)]
    if prompt.asks_letter:
        parts.append("\nAnswer with the option's letter from the given choices directly.")
    elif prompt.choices:
        parts.append("\nAnswer with one of the given choices directly.")
    else:
        parts.append("\nAnswer the question using a single word or phrase.")
    return "".join(parts)


def _lettered(prompt: Prompt) -> list[tuple[str, str]]:
    return list(zip(LETTERS, prompt.choices, strict=False))
