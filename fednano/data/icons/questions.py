"""How the questions are worded: plainly in domain A, in other words and with synonyms in domain B."""

from collections.abc import Mapping
from random import Random

from fednano.data.icons.draw import Domain
from fednano.data.icons.scenes import Scene

_WORDINGS_A: Mapping[str, tuple[str, ...]] = {
    "counting": ("How many {shape} icons are there?", "What is the number of {shape} icons?"),
    "comparing": ("Which side has more icons?", "On which side are there more icons?"),
    "geometry": ("What shape is this?", "What is the shape of the icon?"),
    "spatial": ("Where is the {shape} from the {other}?", "What is the position of the {shape} from the {other}?"),
    "pattern": ("What color is next?", "Which color is next in the row?"),
    "time": ("What time is it?", "What is the time on the clock?"),
    "fraction": ("What part is filled?", "How much of the shape is filled?"),
    "scene": ("What color is the {shape}?", "Which color has the {shape}?"),
}
_WORDINGS_B: Mapping[str, tuple[str, ...]] = {
    "counting": ("Count every {shape} drawn here.", "Tell me the total of {shape} pictures."),
    "comparing": ("Compare both halves and pick the bigger group.", "Choose the half holding the larger group."),
    "geometry": ("Name the outline you see.", "Identify this figure."),
    "spatial": (
        "With respect to the {other} tell me the direction of the {shape}.",
        "Against the {other} locate the {shape}.",
    ),
    "pattern": ("Continue this sequence.", "Pick the paint that comes after the last."),
    "time": ("Read the dial.", "Tell me the hour shown by these hands."),
    "fraction": ("Give the shaded fraction.", "Which ratio of it was shaded?"),
    "scene": ("Name the paint used for the {shape}.", "Identify the tint of that {shape}."),
}
_SYNONYMS_B: Mapping[str, str] = {
    "circle": "disc",
    "square": "box",
    "triangle": "wedge",
    "star": "starlet",
    "heart": "love",
    "diamond": "rhombus",
    "cross": "plus",
    "pentagon": "fivegon",
}


def question(scene: Scene, domain: Domain, random: Random) -> str:
    """One of the skill's wordings. Answers are never reworded: both domains answer in the same words."""
    words = scene.drawing.words
    if domain == "A":
        return random.choice(_WORDINGS_A[scene.skill]).format_map(words)
    synonyms = {name: _SYNONYMS_B[word] for name, word in words.items()}
    return random.choice(_WORDINGS_B[scene.skill]).format_map(synonyms)


def question_texts() -> list[str]:
    """Every text that questions are made of, in a fixed order: what a vocabulary must cover."""
    blank = {"shape": "", "other": ""}
    texts = [text for wordings in (_WORDINGS_A, _WORDINGS_B) for each in wordings.values() for text in each]
    return [*(text.format_map(blank) for text in texts), *_SYNONYMS_B.keys(), *_SYNONYMS_B.values()]
