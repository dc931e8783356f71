from random import Random

from fednano.data.icons.draw import SHAPES
from fednano.data.icons.generate import generate
from fednano.data.icons.questions import question, question_texts


def test_domains_never_word_a_question_alike() -> None:
    random = Random(0)
    scenes = list(generate(160, "A", 0))
    plain = {question(scene, "A", random) for scene in scenes}
    other = {question(scene, "B", random) for scene in scenes}
    assert len(plain) > 20
    assert not plain & other


def test_domain_b_says_synonyms_for_shapes() -> None:
    random = Random(0)
    for scene in generate(160, "B", 0, ["counting", "spatial", "scene"]):
        words = question(scene, "B", random).lower().strip(".").split()
        assert not set(words) & set(SHAPES)


def test_the_texts_cover_every_question() -> None:
    known = set(" ".join(question_texts()).lower().replace("?", " ").replace(".", " ").split())
    random = Random(0)
    for domain in ("A", "B"):
        for scene in generate(400, domain, 3):
            asked = question(scene, domain, random)
            assert set(asked.lower().strip("?.").split()) <= known
