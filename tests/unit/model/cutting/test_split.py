"""Checkpoints that transformers saved, cut in two; and those that cannot be."""

import json
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import CLIP, IMAGE_TOKEN_ID, LLAMA, llava, save, smolvlm
from transformers import LlavaConfig, LlavaForConditionalGeneration

from fednano.errors import ModelInvalid
from fednano.model.cutting.source import LocalFolder
from fednano.model.cutting.split import split_model
from fednano.model.language import load_language_model
from fednano.model.manifest import read_manifest
from fednano.model.parts import load_edge


class CountingFolder(LocalFolder):
    """Counts the bytes that are read of each weights' file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.read_bytes: Counter[str] = Counter()

    def read_at(self, name: str, start: int, length: int) -> bytes:
        found = super().read_at(name, start, length)
        self.read_bytes[name] += len(found)
        return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("tiny") / "llava"
    llava().save(folder)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that is to its embedding and its tower as large ones are; in several shards."""
    language = LLAMA | {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_key_value_heads": 4}
    config = LlavaConfig(vision_config=CLIP, text_config=language, image_token_index=IMAGE_TOKEN_ID)
    folder = tmp_path_factory.mktemp("large") / "llava"
    save(LlavaForConditionalGeneration(config).to(torch.bfloat16), folder, max_shard_size="10MB")
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))


def weights_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_both_halves_carry_one_digest_the_sizes_and_the_type(tiny: Path, tmp_path: Path) -> None:
    split_model(LocalFolder(tiny), tmp_path / "out")
    edge, server = read_manifest(tmp_path / "out" / "edge"), read_manifest(tmp_path / "out" / "server")
    assert edge.digest == server.digest
    assert (edge.hidden_size, edge.vocab_size, edge.dtype, edge.family) == (32, 96, "float32", "llava")
    assert edge.model_copy(update={"files": {}}) == server.model_copy(update={"files": {}})


def test_tensors_are_copied_bit_for_bit_and_those_that_nobody_needs_are_left(tiny: Path, tmp_path: Path) -> None:
    split_model(LocalFolder(tiny), tmp_path / "out")
    whole = load_file(tiny / "model.safetensors")
    server = load_file(tmp_path / "out" / "server" / "model.safetensors")
    edge = load_file(tmp_path / "out" / "edge" / "model.safetensors")
    for name, tensor in server.items():
        assert torch.equal(tensor, whole[f"language_model.{name}"])
    assert torch.equal(edge["token_embedding.weight"], whole["language_model.model.embed_tokens.weight"])
    # Inputs come as embeddings; the last layer of the tower and the norm behind it are not looked at.
    assert "model.embed_tokens.weight" not in server
    assert not [name for name in edge if "layers.2" in name or "post_layernorm" in name]
    assert len(edge) + len(server) == len(whole) - len(
        [name for name in whole if "layers.2." in name or "post_layern" in name]
    )


def test_the_same_halves_come_of_one_file_and_of_shards(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = llava().model
    save(model, tmp_path / "one")
    save(model, tmp_path / "many", max_shard_size="40KB")
    assert len(weights_of(tmp_path / "many")) > 2
    found = [split_model(LocalFolder(tmp_path / name), tmp_path / f"{name}-out") for name in ("one", "many")]
    assert found[0].manifests["edge"].digest == found[1].manifests["edge"].digest
    for half in ("edge", "server"):
        files = [each.manifests[half].files for each in found]
        assert files[0] == files[1]


def test_two_checkpoints_of_one_shape_have_two_digests(tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    llava().save(tmp_path / "other")
    found = [
        split_model(LocalFolder(each), tmp_path / f"{number}") for number, each in enumerate([tiny, tmp_path / "other"])
    ]
    assert found[0].manifests["edge"].digest != found[1].manifests["edge"].digest


def test_an_edge_half_alone_reads_less_than_a_hundredth_of_the_language_model(large: Path, tmp_path: Path) -> None:
    source = CountingFolder(large)
    split_model(source, tmp_path / "out", only="edge")
    assert len(weights_of(large)) > 2
    tensors = {name: each.nbytes for path in weights_of(large) for name, each in load_file(path).items()}
    language_bytes = sum(size for name, size in tensors.items() if name.startswith("language_model."))
    own = load_file(tmp_path / "out" / "edge" / "model.safetensors")
    own_bytes = sum(each.nbytes for name, each in own.items() if name != "token_embedding.weight")
    # All that was opened, headers included, but for the tower and the connector: among it the whole token embedding.
    opened_bytes = sum(source.read_bytes.values()) - own_bytes
    assert own["token_embedding.weight"].nbytes < opened_bytes < 0.01 * language_bytes
    assert not (tmp_path / "out" / "server").exists()
    load_edge(tmp_path / "out" / "edge")


def test_an_edge_half_alone_belongs_to_the_server_half_that_is_cut_later(tiny: Path, tmp_path: Path) -> None:
    edge = split_model(LocalFolder(tiny), tmp_path / "out", only="edge").manifests["edge"]
    server = split_model(LocalFolder(tiny), tmp_path / "out", only="server").manifests["server"]
    assert edge.digest == server.digest


def test_no_more_than_a_shard_is_in_memory(large: Path, tmp_path: Path) -> None:
    split_model(LocalFolder(large), tmp_path / "warm")
    tracemalloc.start()
    split_model(LocalFolder(large), tmp_path / "out")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < max(path.stat().st_size for path in weights_of(large))


def test_the_head_goes_to_the_edge_where_it_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    split_model(LocalFolder(tiny), tmp_path / "out", with_head=True)
    head = load_edge(tmp_path / "out" / "edge").head
    assert head is not None
    assert torch.equal(head.weight, load_file(tiny / "model.safetensors")["language_model.lm_head.weight"])


def test_bfloat16_weights_stay_so_on_disk_and_become_float32_at_the_edge(large: Path, tmp_path: Path) -> None:
    manifest = split_model(LocalFolder(large), tmp_path / "out", only="edge").manifests["edge"]
    assert manifest.dtype == "bfloat16"
    with safe_open(tmp_path / "out" / "edge" / "model.safetensors", framework="pt") as file:
        assert file.get_tensor("token_embedding.weight").dtype == torch.bfloat16
    assert load_edge(tmp_path / "out" / "edge").token_embedding.weight.dtype == torch.float32


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garble_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:8] + b"?" * 50 + path.read_bytes()[58:])


def drop(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def reshape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["multi_modal_projector.linear_1.bias"] = torch.zeros(7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def point_index_elsewhere(folder: Path) -> None:
    index = {"weight_map": {"language_model.lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an unknown architecture": (
        lambda folder: change_config(folder, architectures=["GigaForCausalLM"]),
        "of the architecture GigaForCausalLM; one of these can be cut: .*LlavaForConditionalGeneration",
    ),
    "no settings": (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    "settings that are none": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is no settings"),
    "a shard cut short": (cut_short, r"model\.safetensors is damaged: it has \d+ bytes where its header says \d+"),
    "a garbled header": (garble_header, r"model\.safetensors is damaged: its header cannot be read"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "a missing shard": (point_index_elsewhere, r"model-00001-of-00002\.safetensors is missing"),
    "a tensor that the edge lacks": (
        drop("multi_modal_projector.linear_1.bias"),
        r"lacks 1 of the \d+ tensors that an edge half needs: connector\.linear_1\.bias",
    ),
    "a tensor that the server lacks": (
        drop("language_model.model.layers.1.mlp.up_proj.weight"),
        r"lacks 1 of the \d+ tensors that a server half needs: model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "no token embedding": (drop("language_model.model.embed_tokens.weight"), "lacks the token embedding"),
    "a tensor of another shape": (reshape, r"connector\.linear_1\.bias is \[7\], where config\.json makes it \[32\]"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
    "an unknown tower": (
        lambda folder: change_config(folder, vision_config={"model_type": "pixtral"}),
        "a vision tower of type pixtral",
    ),
}


@pytest.mark.parametrize("name", sorted(DAMAGES))
def test_what_cannot_be_cut_is_one_clear_error_and_leaves_nothing(name: str, copy: Path) -> None:
    damage, words = DAMAGES[name]
    damage(copy)
    with pytest.raises(ModelInvalid, match=words):
        split_model(LocalFolder(copy), copy.parent / "out")
    assert [path.name for path in copy.parent.iterdir()] == ["checkpoint"]


def test_a_shard_that_lacks_what_the_index_puts_there_is_named(tmp_path: Path) -> None:
    save(llava().model, tmp_path / "many", max_shard_size="40KB")
    index_file = tmp_path / "many" / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))
    name = next(name for name, file in index["weight_map"].items() if file == first)
    index["weight_map"][name] = last
    index_file.write_text(json.dumps(index))
    with pytest.raises(ModelInvalid, match=f"{last} lacks the tensor {name}"):
        split_model(LocalFolder(tmp_path / "many"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_while_writing_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    class LostFolder(CountingFolder):
        def read_at(self, name: str, start: int, length: int) -> bytes:
            # Samples and headers are read; then the disk goes away.
            found = super().read_at(name, start, length)
            return found[:-1] if length > 4000 and start > 8 else found

    with pytest.raises(ModelInvalid, match="it ends in the middle of a tensor"):
        split_model(LostFolder(tiny), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_half_that_is_there_is_not_overwritten(tiny: Path, tmp_path: Path) -> None:
    split_model(LocalFolder(tiny), tmp_path / "out", only="edge")
    with pytest.raises(ModelInvalid, match="edge is there already"):
        split_model(LocalFolder(tiny), tmp_path / "out")


def test_a_half_does_not_come_beside_another_models(tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    llava().save(tmp_path / "other")
    edge = split_model(LocalFolder(tiny), tmp_path / "out", only="edge").manifests["edge"]
    with pytest.raises(ModelInvalid, match="the halves would not belong together") as caught:
        split_model(LocalFolder(tmp_path / "other"), tmp_path / "out", only="server")
    assert caught.value.facts["expected_digest"] == edge.digest
    assert caught.value.facts["actual_digest"] not in ("", edge.digest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["edge"]


@pytest.mark.parametrize("half", ["edge", "server"])
def test_one_changed_byte_of_a_half_is_found_when_it_is_loaded(tiny: Path, tmp_path: Path, half: str) -> None:
    split_model(LocalFolder(tiny), tmp_path / "out")
    weights = tmp_path / "out" / half / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    load = load_edge if half == "edge" else load_language_model
    with pytest.raises(ModelInvalid, match=r"model\.safetensors: its digest is \w+, the manifest says \w+"):
        load(tmp_path / "out" / half)


def test_a_tower_of_which_two_tokens_would_have_one_position_is_refused(tmp_path: Path) -> None:
    smolvlm().save(tmp_path / "whole")
    vision = json.loads((tmp_path / "whole" / "config.json").read_text())["vision_config"]
    change_config(tmp_path / "whole", vision_config=vision | {"image_size": 38 * vision["patch_size"]})
    with pytest.raises(ModelInvalid, match="38 tokens a side, of which the family gives two the same position"):
        split_model(LocalFolder(tmp_path / "whole"), tmp_path / "out")
