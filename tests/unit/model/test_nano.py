"""B: batch   T: tokens   D: hidden size   P: image tokens   E: vision width   V: vocabulary
C: colour channels   H, W: height and width in pixels
"""

from random import Random

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForCausalLM

from fednano.data.icons.draw import Domain
from fednano.data.icons.generate import generate
from fednano.data.icons.questions import question
from fednano.data.icons.scenes import Scene
from fednano.model.parts import EdgeParts, load_edge, resolve_model
from fednano.prompt import Prompt

DOMAINS: tuple[Domain, ...] = ("A", "B")


@pytest.fixture(scope="module")
def parts() -> EdgeParts:
    torch.set_num_threads(1)
    return load_edge(resolve_model("nano") / "edge")


@pytest.fixture(scope="module")
def language_model() -> torch.nn.Module:
    folder = resolve_model("nano") / "server"
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def answers() -> list[str]:
    return sorted({scene.drawing.answer for domain in DOMAINS for scene in generate(2000, domain, 5)})


def test_every_answer_is_one_token_and_is_read_back_as_it_was_written(parts: EdgeParts) -> None:
    assert {"3/4", "10:30", "left", "pentagon", "6"} <= set(answers())
    for answer in answers():
        ids = parts.processor.answer_ids(answer)
        assert len(ids) == 2
        assert ids[-1] == parts.processor.eos_token_id
        assert parts.processor.text(ids) == answer


def test_text_stops_where_the_answer_ends(parts: EdgeParts) -> None:
    processor = parts.processor
    assert processor.text([*processor.answer_ids("red circle"), *processor.answer_ids("blue")]) == "red circle"
    assert processor.text(processor.answer_ids("red")[:-1]) == "red"
    assert processor.text([]) == ""


def test_no_word_of_either_domain_is_unknown(parts: EdgeParts) -> None:
    (unknown_id, _) = parts.processor.answer_ids("zeppelin")
    random = Random(0)
    for domain in DOMAINS:
        for scene in generate(400, domain, 1):
            assert unknown_id not in parts.processor.prompt_ids(Prompt(question=question(scene, domain, random)))
            assert unknown_id not in parts.processor.answer_ids(scene.drawing.caption)


def test_a_prompt_is_first_token_placeholders_question_and_answer_mark(parts: EdgeParts) -> None:
    processor = parts.processor
    ids = processor.prompt_ids(Prompt(question="What time is it?"))
    words = processor.answer_ids("what time is it ? answer :")[:-1]
    assert ids[1:] == [processor.image_token_id] * 16 + words
    assert ids[0] not in (processor.image_token_id, processor.eos_token_id, *words)


def test_choices_stand_between_question_and_answer_mark(parts: EdgeParts) -> None:
    processor = parts.processor
    ids = processor.prompt_ids(Prompt(question="What color is next?", choices=("red", "blue")))
    assert ids[17:] == processor.answer_ids("what color is next ? options : red , blue answer :")[:-1]


def test_special_tokens_in_a_question_stay_plain_text(parts: EdgeParts) -> None:
    processor = parts.processor
    ids = processor.prompt_ids(Prompt(question="What <eos> time <image> is <IMAGE> it?"))
    assert processor.eos_token_id not in ids
    assert ids.count(processor.image_token_id) == 16


@pytest.mark.parametrize(("mode", "size"), [("RGB", (64, 64)), ("L", (30, 90)), ("RGBA", (640, 480)), ("P", (64, 64))])
def test_pixels_take_pictures_of_any_kind(parts: EdgeParts, mode: str, size: tuple[int, int]) -> None:
    pixels_CHW = parts.processor.pixels(Image.new(mode, size))
    assert (pixels_CHW.shape, pixels_CHW.dtype) == ((3, 64, 64), torch.float32)
    assert pixels_CHW.min() >= -1


def test_pixels_reach_from_minus_one_to_one(parts: EdgeParts) -> None:
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    means_C = parts.processor.pixels(image).mean(dim=(1, 2))
    torch.testing.assert_close(means_C, torch.tensor([1.0, -1.0, -1.0]))


def test_the_halves_share_embedding_and_head(parts: EdgeParts, language_model: torch.nn.Module) -> None:
    weights = language_model.state_dict()
    assert parts.head is not None
    torch.testing.assert_close(weights["model.embed_tokens.weight"], parts.token_embedding.weight, rtol=0, atol=0)
    torch.testing.assert_close(weights["lm_head.weight"], parts.head.weight, rtol=0, atol=0)


def test_the_preset_is_as_small_as_promised(parts: EdgeParts, language_model: torch.nn.Module) -> None:
    assert 0.4e6 < sum(p.numel() for p in parts.vision_encoder.parameters()) < 0.6e6
    assert 0.8e6 < sum(p.numel() for p in language_model.parameters()) < 1.0e6
    assert sum(path.stat().st_size for path in resolve_model("nano").rglob("*.safetensors")) < 4_000_000


def test_the_preset_answers_domain_a_and_leaves_domain_b_to_be_learned(
    parts: EdgeParts, language_model: torch.nn.Module
) -> None:
    assert exact_match(parts, language_model, "A") > 0.85
    assert exact_match(parts, language_model, "B") < 0.45


def exact_match(parts: EdgeParts, language_model: torch.nn.Module, domain: Domain) -> float:
    random, scenes = Random(0), list(generate(160, domain, 99))
    decoded = [decode(parts, language_model, scene, question(scene, domain, random)) for scene in scenes]
    return sum(text == scene.drawing.answer for text, scene in zip(decoded, scenes, strict=True)) / len(scenes)


@torch.no_grad()
def decode(parts: EdgeParts, language_model: torch.nn.Module, scene: Scene, asked: str) -> str:
    """Greedy, at most four tokens, as plain as can be."""
    prompt_ids, ids = parts.processor.prompt_ids(Prompt(question=asked)), list[int]()
    features_BPE = parts.vision_encoder(parts.processor.pixels(scene.image)[None])
    image_embeds_BPD: Tensor = parts.connector(features_BPE)
    while len(ids) < 4 and parts.processor.eos_token_id not in ids:
        embeds_BTD = parts.token_embedding(torch.tensor([[*prompt_ids, *ids]]))
        embeds_BTD[:, 1:17] = image_embeds_BPD
        logits_BTV = language_model(inputs_embeds=embeds_BTD).logits
        ids.append(int(logits_BTV[0, -1].argmax()))
    return parts.processor.text(ids)
