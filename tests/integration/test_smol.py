"""The preset `smol` as `fednano model fetch` makes it of the real packages; skipped where these cannot be had."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM

from fednano.data.icons.generate import generate
from fednano.data.icons.questions import question
from fednano.errors import PartFailed
from fednano.model.adapter import MODALITIES, NanoAdapters
from fednano.model.batch import EncodedExample, pack_prompts
from fednano.model.edge import NanoEdge, image_embeds
from fednano.model.language import LanguageModel, load_language_model
from fednano.model.parts import load_edge
from fednano.prompt import Prompt
from fednano.split.decode import greedy_decode

pytest.importorskip("gguf", reason="gguf is not installed: pip install 'fednano[gguf]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SIZE_BYTES = {"edge": 75_000_000, "server": 275_000_000}
PICTURES = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fednano.model.fetching.smol import fetch_smol

    folder = tmp_path_factory.mktemp("models") / "smol"
    try:
        assert fetch_smol(folder, lambda _: None)
    except PartFailed as error:
        pytest.skip(f"the packages of smol cannot be had here: {error.message.splitlines()[-1]}")
    return folder


@pytest.fixture(scope="module")
def edge(model: Path) -> Iterator[NanoEdge]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield NanoEdge(load_edge(model / "edge"), NanoAdapters(MODALITIES, hidden_size=576, rank=4, alpha=8))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def language(model: Path) -> LanguageModel:
    return load_language_model(model / "server", torch.bfloat16)


def test_both_halves_are_whole_small_and_of_one_digest(model: Path) -> None:
    from fednano.model.manifest import check_files, read_manifest

    manifests = {half: read_manifest(model / half) for half in SIZE_BYTES}
    assert manifests["edge"].digest == manifests["server"].digest
    for half, manifest in manifests.items():
        check_files(model / half, manifest)
        assert sum(path.stat().st_size for path in (model / half).iterdir()) < SIZE_BYTES[half]


def test_a_second_fetch_leaves_the_model_as_it_is(model: Path) -> None:
    from fednano.model.fetching.smol import fetch_smol

    weights = model / "edge" / "model.safetensors"
    before = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert not fetch_smol(model, lambda _: None)
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == before


def test_parity_smol_with_the_whole_model(model: Path, edge: NanoEdge) -> None:
    """Untrained adapters change nothing, so that transformers' model gives the same on the same tokens, in float32."""
    prompt = encoded(edge, "What is the capital of France?")
    batch = pack_prompts([prompt], edge.parts.processor.image_token_id)
    half = load_language_model(model / "server", torch.float32)
    hidden_ND = half.forward(edge(batch), batch.sequence_lengths, [len(prompt.prompt_ids) - 1], "hidden_states")
    whole = AutoModelForCausalLM.from_pretrained(model / "server", dtype=torch.float32).eval().requires_grad_(False)
    expected_NV = whole(torch.tensor([prompt.prompt_ids])).logits[:, -1]
    torch.testing.assert_close(edge.logits(hidden_ND), expected_NV, rtol=1e-4, atol=1e-4)


def test_the_language_model_still_answers_plain_questions(edge: NanoEdge, language: LanguageModel) -> None:
    assert "Paris" in answers(edge, language, [encoded(edge, "What is the capital of France?")], 12)[0]


def test_it_names_the_shapes_that_its_connector_learned(edge: NanoEdge, language: LanguageModel) -> None:
    """An eighth would be right by guessing."""
    scenes = list(generate(PICTURES, "A", 12345, ["geometry"]))
    pixels_BCHW = torch.stack([edge.parts.processor.pixels(scene.image) for scene in scenes])
    random = Random(0)
    asked = [
        encoded(edge, question(scene, "A", random), embeds_PD)
        for scene, embeds_PD in zip(scenes, image_embeds(edge.parts, pixels_BCHW), strict=True)
    ]
    found = answers(edge, language, asked, 6)
    assert sum(text == scene.drawing.answer for text, scene in zip(found, scenes, strict=True)) >= PICTURES // 2


def encoded(edge: NanoEdge, asked: str, image_embeds_PD: torch.Tensor | None = None) -> EncodedExample:
    has_image = image_embeds_PD is not None
    ids = edge.parts.processor.prompt_ids(Prompt(question=asked, image_count=int(has_image)))
    return EncodedExample(
        prompt_ids=tuple(ids),
        answer_ids=(),
        image_embeds_PD=torch.zeros(0, 576) if image_embeds_PD is None else image_embeds_PD,
    )


def answers(edge: NanoEdge, language: LanguageModel, asked: list[EncodedExample], most: int) -> list[str]:
    processor, state = edge.parts.processor, language.start_decoding()
    ids = greedy_decode(
        edge,
        lambda *step: language.decode(state, *step).float(),
        pack_prompts(asked, processor.image_token_id),
        eos_token_id=processor.eos_token_id,
        max_new_tokens=most,
    )
    return [processor.text(each) for each in ids]
