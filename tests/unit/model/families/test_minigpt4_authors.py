"""The authors' files become the checkpoint that they would have made of transformers' parts."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_families import CLIP, MiniGPT4, write_tokenizer
from torch import Tensor

from fednano.errors import ModelInvalid
from fednano.model.cutting.source import LocalFolder
from fednano.model.cutting.split import split_model
from fednano.model.families.minigpt4_authors import convert_authors_files
from fednano.model.parts import load_edge

LAYER_COUNT = int(str(CLIP["num_hidden_layers"]))


def authors_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As LAVIS lays EVA out: query and value have biases, a key has none; with a block behind the last one used."""
    tower = {}
    for name, tensor in state.items():
        for ours, theirs in (
            (r"^embeddings\.class_embedding$", "cls_token"),
            (r"^embeddings\.position_embedding$", "pos_embed"),
            (r"^embeddings\.patch_embedding", "patch_embed.proj"),
            (r"^encoder\.layers\.(\d+)\.layer_norm(\d)", r"blocks.\1.norm\2"),
            (r"^encoder\.layers\.(\d+)\.self_attn\.projection", r"blocks.\1.attn.proj"),
            (r"^encoder\.layers\.(\d+)\.self_attn\.qkv", r"blocks.\1.attn.qkv"),
            (r"^encoder\.layers\.(\d+)\.mlp", r"blocks.\1.mlp"),
        ):
            renamed, count = re.subn(ours, theirs, name)
            if count:
                tower[renamed] = tensor
    for number in range(LAYER_COUNT):
        bias = tower.pop(f"blocks.{number}.attn.qkv.bias")
        tower[f"blocks.{number}.attn.q_bias"], _, tower[f"blocks.{number}.attn.v_bias"] = bias.chunk(3)
    extra = {name.replace("blocks.0.", f"blocks.{LAYER_COUNT}."): tensor for name, tensor in tower.items()}
    return tower | extra | {"head.weight": torch.zeros(2, 2)}


def authors_qformer(model: MiniGPT4) -> dict[str, Tensor]:
    renamed = {"query_tokens": model.query_tokens.data}
    renamed |= {f"ln_vision.{name}": each for name, each in model.vision_model.post_layernorm.state_dict().items()}
    for name, tensor in model.qformer.state_dict().items():
        theirs = re.sub(r"attention\.attention\.", "attention.self.", f"Qformer.bert.{name}")
        renamed[theirs.replace("bert.layernorm.", "bert.embeddings.LayerNorm.")] = tensor
    unused = {"Qformer.bert.embeddings.word_embeddings.weight": torch.zeros(3, 3), "t5_proj.weight": torch.zeros(2, 2)}
    return renamed | unused | {"Qformer.bert.encoder.layer.0.intermediate.dense.weight": torch.zeros(2, 2)}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    torch.manual_seed(2)
    model = MiniGPT4().requires_grad_(False)
    for number in range(LAYER_COUNT):
        # The authors' keys have no bias.
        model.vision_model.encoder.layers[number].self_attn.qkv.bias[24:48] = 0
    model.language_model.save_pretrained(tmp_path / "vicuna")
    write_tokenizer(tmp_path / "vicuna", "<90>")
    torch.save(authors_tower(model.vision_model.state_dict()), tmp_path / "eva.pth")
    torch.save({"model": authors_qformer(model)}, tmp_path / "qformer.pth")
    projection = {f"llama_proj.{name}": each for name, each in model.language_projection.state_dict().items()}
    torch.save({"model": projection}, tmp_path / "projection.pth")
    torch.save(model.state_dict(), tmp_path / "expected.pth")
    return {
        "vit": tmp_path / "eva.pth",
        "qformer": tmp_path / "qformer.pth",
        "projection": tmp_path / "projection.pth",
        "language": tmp_path / "vicuna",
    }


def test_every_tensor_arrives_under_the_name_that_transformers_has(files: dict[str, Path], tmp_path: Path) -> None:
    convert_authors_files(**files, out=tmp_path / "out", layer_count=LAYER_COUNT)
    found = load_file(tmp_path / "out" / "encoder.safetensors")
    expected = torch.load(tmp_path / "expected.pth", weights_only=True)
    assert set(found) == {name for name in expected if not name.startswith("language_model.")}
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_what_was_converted_is_cut_and_loaded(files: dict[str, Path], tmp_path: Path) -> None:
    convert_authors_files(**files, out=tmp_path / "out", layer_count=LAYER_COUNT)
    found = split_model(LocalFolder(tmp_path / "out"), tmp_path / "halves")
    assert found.manifests["edge"].family == "minigpt4"
    parts = load_edge(tmp_path / "halves" / "edge")
    assert parts.processor.image_token_id == 96
    config = json.loads((tmp_path / "halves" / "edge" / "config.json").read_text())
    assert config["qformer"]["query_count"] == 5


def test_the_language_models_shards_are_linked_not_copied(files: dict[str, Path], tmp_path: Path) -> None:
    convert_authors_files(**files, out=tmp_path / "out", layer_count=LAYER_COUNT)
    assert (tmp_path / "out" / "model.safetensors").samefile(tmp_path / "vicuna" / "model.safetensors")


def test_files_that_are_given_in_the_wrong_place_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    swapped = files | {"vit": files["qformer"], "qformer": files["vit"]}
    with pytest.raises(ModelInvalid, match="is no EVA-CLIP tower"):
        convert_authors_files(**swapped, out=tmp_path / "out", layer_count=LAYER_COUNT)
    with pytest.raises(ModelInvalid, match="the files lack query_tokens"):
        convert_authors_files(**files | {"qformer": files["vit"]}, out=tmp_path / "out", layer_count=LAYER_COUNT)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_weights_is_refused_and_runs_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelInvalid, match="cannot be read as weights"):
        convert_authors_files(**files | {"vit": tmp_path / "bad.pth"}, out=tmp_path / "out")
