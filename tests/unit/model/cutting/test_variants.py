"""Checkpoints as others write them: what is said in another way is understood, what cannot be right is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import llava
from torch import Tensor

from fednano.errors import ModelInvalid
from fednano.model.cutting.source import LocalFolder
from fednano.model.cutting.split import split_model
from fednano.model.manifest import Manifest
from fednano.model.parts import load_edge

CONNECTOR = "multi_modal_projector.linear_1.weight"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    llava().save(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tiny: Path) -> Manifest:
    return split_model(LocalFolder(tiny), tiny.parent / "plain", only="edge").manifests["edge"]


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))


def said(**changes: object) -> Change:
    """What config.json says otherwise; a name with two parts is of a section, and None is null."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            section, _, inner = name.partition("__")
            if inner:
                config[section][inner] = value
            else:
                config[name] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def written(name: str, content: object) -> Change:
    return lambda folder: (folder / name).write_text(json.dumps(content))


def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, metadata={"format": "pt"})

    return rewrite


def header(change: Callable[[dict[str, dict[str, list[int]]]], object]) -> Change:
    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        found = json.loads(content[8:end])
        change(found)
        new = json.dumps(found).encode()
        path.write_bytes(len(new).to_bytes(8, "little") + new + content[end:])

    return rewrite


def all_of(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def with_newer_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {
        name.replace("language_model.model.", "language_model.").replace("language_model.lm_head", "lm_head"): tensor
        for name, tensor in tensors.items()
    }
    return {name if name.startswith("lm_head") else f"model.{name}": tensor for name, tensor in renamed.items()}


def link_weights(folder: Path) -> None:
    """As a hub's cache has them."""
    (folder.parent / "blobs").mkdir()
    (folder / "model.safetensors").rename(folder.parent / "blobs" / "1")
    (folder / "model.safetensors").symlink_to("../blobs/1")


ALIKE: dict[str, Change] = {
    "names of newer releases": weights(with_newer_names),
    "names without the tower's model": weights(
        lambda tensors: {name.replace("vision_tower.vision_model.", "vision_tower."): tensors[name] for name in tensors}
    ),
    "weights behind a link": link_weights,
    "the image token by its newer name": said(image_token_index=None, image_token_id=90),
    "null for what is not said": said(
        vision_feature_layer=None,
        vision_feature_select_strategy=None,
        projector_hidden_act=None,
        multimodal_projector_bias=None,
        image_seq_length=None,
        vision_config__layer_norm_eps=None,
    ),
    "pictures' settings that are null": written(
        "preprocessor_config.json", {"size": None, "image_mean": None, "image_std": None, "resample": None}
    ),
    "the end of an answer among the special tokens": all_of(
        written("tokenizer_config.json", {"bos_token": "<s>", "eos_token": None}),
        written("special_tokens_map.json", {"eos_token": {"content": "</s>"}}),
    ),
}


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_what_is_said_in_another_way_gives_the_same_edge_half(name: str, copy: Path, plain: Manifest) -> None:
    ALIKE[name](copy)
    found = split_model(LocalFolder(copy), copy.parent / "out", only="edge").manifests["edge"]
    assert found.digest == plain.digest
    assert found.files == plain.files


def test_the_end_of_an_answer_is_found_by_its_id_where_the_tokenizer_has_no_settings(copy: Path) -> None:
    (copy / "tokenizer_config.json").unlink()
    said(text_config__eos_token_id=None)(copy)
    written("generation_config.json", {"eos_token_id": [2, 7]})(copy)
    split_model(LocalFolder(copy), copy.parent / "out", only="edge")
    assert load_edge(copy.parent / "out" / "edge").processor.eos_token_id == 2


def in_8_bits(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.int8) if ".mlp." in name else tensor for name, tensor in tensors.items()}


REFUSED: dict[str, tuple[Change, str]] = {
    "weights that were quantized": (weights(in_8_bits), r"mlp\S+ is of type I8: give the checkpoint before it was"),
    "bytes that are not the shape's": (
        header(lambda found: found[CONNECTOR].update(shape=[32, 23])),
        r"is damaged: its header cannot be read: .*3072 bytes for \[32, 23\] of F32",
    ),
    "tensors that overlap": (
        header(lambda found: found[CONNECTOR].update(data_offsets=[0, 3072])),
        "is damaged: its tensors overlap, or leave a gap",
    ),
    "a chat template that cannot be used": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% for"),
        "the chat template cannot be used",
    ),
    "a chat template that is no text": (
        lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xe9"),
        "its settings are not such as llava has: 'utf-8' codec",
    ),
    "no end of an answer": (
        all_of(
            written("tokenizer_config.json", {}),
            written("generation_config.json", {}),
            said(text_config__eos_token_id=None),
        ),
        r"no token ends an answer: tokenizer_config\.json names no eos_token",
    ),
    "a tokenizer that is none": (written("tokenizer.json", {}), r"tokenizer\.json is no tokenizer \(it has no model\)"),
    "a tokenizer that is no JSON": (
        lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff\xfe"),
        r"tokenizer\.json is no tokenizer",
    ),
    "settings that are a list": (said(vision_config=[1]), "its settings are not such as llava has"),
    "a setting of another type": (
        said(multimodal_projector_bias="maybe"),
        "its settings are not such as llava has: connector_bias: Input should be a valid boolean",
    ),
    "a layer that is not there": (said(vision_feature_layer=-9), r"vision_feature_layer is \[-9\], of 3 layers"),
    "names of architectures that are none": (said(architectures=[1]), "is of the architecture 1; one of these"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_right_is_one_clear_error_when_it_is_cut(name: str, copy: Path) -> None:
    change, words = REFUSED[name]
    change(copy)
    with pytest.raises(ModelInvalid, match=words) as caught:
        split_model(LocalFolder(copy), copy.parent / "out", only="edge")
    assert len(caught.value.message.splitlines()) == 1
    assert [path.name for path in copy.parent.iterdir()] == ["checkpoint"]
