"""A checkpoint on a hub gives the halves that it gives in a folder, and no more of it is fetched than is needed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Hub, serving_hub
from safetensors import safe_open
from tiny_families import CLIP, IMAGE_TOKEN_ID, LLAMA, save
from transformers import LlavaConfig, LlavaForConditionalGeneration

from fednano.errors import ModelInvalid
from fednano.model.cutting.hub import HubRepository
from fednano.model.cutting.source import LocalFolder
from fednano.model.cutting.split import split_model

NAME = "somebody/tiny-llava"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a language model whose weights are many times those of its embedding."""
    torch.manual_seed(3)
    language = LLAMA | {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 6, "num_key_value_heads": 4}
    config = LlavaConfig(vision_config=CLIP, text_config=language, image_token_index=IMAGE_TOKEN_ID)
    made = tmp_path_factory.mktemp("hub") / "tiny"
    save(LlavaForConditionalGeneration(config), made, max_shard_size="400KB")
    return made


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving_hub(NAME, folder) as serving:
        yield serving


def test_both_halves_are_those_of_the_folder(hub: Hub, folder: Path, tmp_path: Path) -> None:
    local = split_model(LocalFolder(folder), tmp_path / "local")
    found = split_model(HubRepository(NAME, endpoint=hub.endpoint), tmp_path / "hub")
    for half, manifest in found.manifests.items():
        assert manifest.model == NAME
        assert manifest.digest == local.manifests[half].digest
        assert manifest.files == local.manifests[half].files


def test_for_an_edge_half_no_shard_of_the_language_model_is_fetched(hub: Hub, folder: Path, tmp_path: Path) -> None:
    split_model(HubRepository(NAME, endpoint=hub.endpoint), tmp_path / "out", only="edge")
    language_only = [path for path in sorted(folder.glob("*.safetensors")) if is_language_only(path)]
    assert len(language_only) > 4
    for path in language_only:
        # Its header, and a few bytes of each of its tensors.
        assert 0 < hub.sent_bytes[path.name] < 0.02 * path.stat().st_size


def is_language_only(shard: Path) -> bool:
    with safe_open(shard, framework="pt") as file:
        names = list(file.keys())
    return all(name.startswith("language_model.") and "embed_tokens" not in name for name in names)


def test_a_repository_that_is_not_there_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match=r"somebody/else: .* cannot be had from the hub"):
        split_model(HubRepository("somebody/else", endpoint=hub.endpoint), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hub_that_gives_no_parts_is_not_read_whole_by_mistake(hub: Hub, tmp_path: Path) -> None:
    hub.gives_ranges = False
    with pytest.raises(ModelInvalid, match="the hub gives no part of"):
        split_model(HubRepository(NAME, endpoint=hub.endpoint), tmp_path / "out", only="edge")


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    hub.busy_count = 1
    split_model(HubRepository(NAME, endpoint=hub.endpoint), tmp_path / "out", only="edge")
    assert hub.busy_count == 0


def test_a_hub_that_cannot_be_reached_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelInvalid, match="cannot be had from the hub"):
        split_model(HubRepository(NAME, endpoint="http://127.0.0.1:9"), tmp_path / "out")
