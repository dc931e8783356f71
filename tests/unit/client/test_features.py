"""Features are the same to the bit, whether they were kept in memory, on disk, or computed again."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fednano.data.icon_federation import write_icon_federation
from fednano.errors import DeviceMemoryFull, ExamplesInvalid
from fednano.model.batch import EncodedExample
from fednano.model.parts import EdgeParts, load_edge, resolve_model
from services.client.examples import chosen, load_example_set
from services.client.feature_cache import FeatureCache
from services.client.features import FeatureBounds, Features
from services.client.pictures import Picture

PICTURE_BYTES = 16 * 128 * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (made,) = write_icon_federation(
        tmp_path_factory.mktemp("icons"), client_count=1, alpha=1.0, seed=0, train_count=21, val_count=1, test_count=5
    )
    return made


class Counting(nn.Module):
    """A vision encoder that counts the pictures it sees, and has memory for so many."""

    def __init__(self, inner: nn.Module, most: int = 1000) -> None:
        super().__init__()
        self.inner, self.most = inner, most
        self.seen: list[int] = []

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        if len(pixels_BCHW) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.seen.append(len(pixels_BCHW))
        features_BPE: Tensor = self.inner(pixels_BCHW)
        return features_BPE


def counted(most: int = 1000) -> tuple[EdgeParts, Counting]:
    torch.set_num_threads(1)
    parts = load_edge(resolve_model("nano") / "edge")
    encoder = Counting(parts.vision_encoder, most)
    return replace(parts, vision_encoder=encoder), encoder


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[FeatureCache]:
    made = FeatureCache(tmp_path / "features", "key", 1 << 20)
    assert made.open()
    yield made
    made.close()


def embeds(examples: Sequence[EncodedExample]) -> Tensor:
    return torch.cat([example.image_embeds_PD for example in examples])


def expected(folder: Path) -> Tensor:
    return embeds(load_example_set(folder, "train", counted()[0]).encoded)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_no_bit_depends_on_batch_or_threads(folder: Path, batch: int, workers: int) -> None:
    parts, _ = counted()
    features = Features(parts, FeatureBounds(encoder_batch=batch, decode_workers=workers))
    assert torch.equal(embeds(load_example_set(folder, "train", parts, features).encoded), expected(folder))


def test_a_second_start_encodes_nothing(folder: Path, cache: FeatureCache) -> None:
    first, seen = counted()
    load_example_set(folder, "train", first, Features(first, cache=cache))
    assert sum(seen.seen) >= 21
    second, encoder = counted()
    examples = load_example_set(folder, "train", second, Features(second, cache=cache)).encoded
    assert torch.equal(embeds(examples), expected(folder))
    assert encoder.seen == []


def test_a_damaged_entry_is_computed_again(folder: Path, cache: FeatureCache, tmp_path: Path) -> None:
    parts, _ = counted()
    load_example_set(folder, "train", parts, Features(parts, cache=cache))
    for file in sorted(tmp_path.glob("features/*/*/*.safetensors"))[:7]:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    second, encoder = counted()
    examples = load_example_set(folder, "train", second, Features(second, cache=cache)).encoded
    assert torch.equal(embeds(examples), expected(folder))
    assert encoder.seen == [7]


def test_memory_holds_no_more_than_its_bound_and_the_rest_is_computed_as_it_is_used(folder: Path) -> None:
    parts, encoder = counted()
    bounds = FeatureBounds(memory_bytes=4 * PICTURE_BYTES, encoder_batch=4)
    features = Features(parts, bounds)
    examples = load_example_set(folder, "train", parts, features).encoded
    assert features.memory_bytes == 4 * PICTURE_BYTES
    ahead = sum(encoder.seen)
    assert ahead < 21, "what does not fit is not encoded ahead"
    assert torch.equal(embeds(examples), expected(folder))
    assert sum(encoder.seen) > ahead
    assert features.memory_bytes == 4 * PICTURE_BYTES


def test_chosen_examples_are_fetched_as_they_are_looked_at(folder: Path) -> None:
    parts, encoder = counted()
    features = Features(parts, FeatureBounds(memory_bytes=0))
    examples = load_example_set(folder, "train", parts, features).encoded
    assert encoder.seen == []
    picked = chosen(examples, [3, 20, 3])
    assert (len(picked), encoder.seen) == (3, [])
    assert torch.equal(embeds(picked), torch.cat([expected(folder)[16 * n : 16 * n + 16] for n in (3, 20, 3)]))
    assert encoder.seen == [2], "one picture asked for twice is computed once"
    assert torch.equal(embeds(examples[19:]), expected(folder)[16 * 19 :])


def test_an_encoder_without_memory_for_the_batch_gets_half_and_remembers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, encoder = counted(most=6)
    examples = load_example_set(folder, "train", parts, Features(parts, FeatureBounds(encoder_batch=16))).encoded
    assert torch.equal(embeds(examples), expected(folder))
    assert encoder.seen == [4, 4, 4, 4, 4, 2]
    assert capsys.readouterr().out.count("out_of_memory") == 2


def test_no_memory_for_a_single_picture_is_told_with_what_to_do(folder: Path) -> None:
    parts, _ = counted(most=0)
    with pytest.raises(DeviceMemoryFull, match="--encoder-type bfloat16"):
        load_example_set(folder, "train", parts)


def test_a_picture_that_changes_while_the_client_runs_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.new("RGB", (64, 64), "red").save(path)
    parts, _ = counted()
    features = Features(parts, FeatureBounds(memory_bytes=0))
    picture = Picture(path=path, pid="1")
    features.prepare("train", [picture])
    before = features.of([picture])[path]
    Image.new("RGB", (64, 64), "blue").save(path)
    with pytest.raises(ExamplesInvalid, match=r"example 1: .*was changed"):
        features.of([picture])
    assert before.shape == (16, 128)


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_what_is_no_picture_is_told_at_the_start(tmp_path: Path, memory_bytes: int) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(b"none")
    parts, _ = counted()
    with pytest.raises(ExamplesInvalid, match=r"example 7: .*one.png is no picture"):
        Features(parts, FeatureBounds(memory_bytes=memory_bytes)).prepare("train", [Picture(path=path, pid="7")])


def test_who_stops_the_client_need_not_wait_for_the_last_picture(folder: Path) -> None:
    class Stopped(Exception):
        pass

    def check() -> None:
        raise Stopped

    parts, encoder = counted()
    with pytest.raises(Stopped):
        load_example_set(folder, "train", parts, Features(parts, FeatureBounds(encoder_batch=3)), check)
    assert sum(encoder.seen) == 3
