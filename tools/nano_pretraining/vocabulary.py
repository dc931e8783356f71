"""The words of the nano family: all that captions, questions and answers of both domains are made of."""

import re

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split

from fednano.data.icons.draw import COLORS, SHAPES
from fednano.data.icons.questions import question_texts
from fednano.data.icons.scenes import RELATIONS
from fednano.model.nano import SPECIAL_TOKENS, UNKNOWN

# A time and a fraction are one token each, so that an answer is read back as it was written.
_WORD = r"\d+:\d+|\d+/\d+|\w+|[^\w\s]"


def new_tokenizer() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL_TOKENS, *_words()]))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Split(Regex(_WORD), behavior="removed", invert=True)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _words() -> list[str]:
    numbers = [str(i) for i in range(13)]
    times = [f"{hour}:{minute}" for hour in range(1, 13) for minute in ("00", "30")]
    fractions = [f"{part}/{whole}" for whole in range(2, 7) for part in range(1, whole)]
    texts = ["answer : describe options , . ?", "big row next clock filled same", " ".join(question_texts()).lower()]
    asked = [word for text in texts for word in re.findall(_WORD, text)]
    return [*SHAPES, *COLORS, *RELATIONS, *numbers, *times, *fractions, *asked]
