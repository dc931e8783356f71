"""An update that may not be merged is refused in words that say what is wrong with it, however it was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from fednano.adapter_layout import adapter_shapes
from fednano.errors import UpdateInvalid
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER as ADAPTER
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_FISHER as FISHER
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_GRAM as GRAM
from services.aggregator.update_check import HEADER_BYTES, check_base, check_tensors, max_file_bytes

CLIENT = "runs/r/clients/a"
SHAPES = adapter_shapes(["image"], 8, 2)
DOWN, UP = SHAPES


def tensors(**replaced: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """A sound file's; ``down`` and ``up`` take the place of the tensors."""
    sound: dict[str, NDArray[Any]] = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    return sound | {{"down": DOWN, "up": UP}.get(key, key): tensor for key, tensor in replaced.items()}


def refusal(path: Path, *, is_fisher: bool = False) -> str:
    with pytest.raises(UpdateInvalid) as refused:
        check_tensors(CLIENT, path, SHAPES, FISHER if is_fisher else ADAPTER)
    assert refused.value.message.startswith(CLIENT)
    return refused.value.message


def refusal_of(folder: Path, content: Mapping[str, NDArray[Any]], *, is_fisher: bool = False) -> str:
    save_file(dict(content), folder / "update")
    return refusal(folder / "update", is_fisher=is_fisher)


@pytest.mark.parametrize("is_fisher", [False, True])
def test_a_sound_file_is_accepted(tmp_path: Path, is_fisher: bool) -> None:
    save_file(tensors(), tmp_path / "update", metadata={"format": "np"})
    check_tensors(CLIENT, tmp_path / "update", SHAPES, FISHER if is_fisher else ADAPTER)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_wherever_it_stands(tmp_path: Path, value: float) -> None:
    for index in (0, 9, 15):
        up = np.ones(16, np.float32)
        up[index] = value
        assert f"adapter {UP} has a value that is not finite" in refusal_of(tmp_path, tensors(up=up.reshape(8, 2)))


def test_a_value_in_a_later_block_is_checked_too(tmp_path: Path) -> None:
    shapes = adapter_shapes(["image"], 400_000, 1)
    sound = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    sound[UP][-1] = np.nan
    save_file(sound, tmp_path / "update")
    with pytest.raises(UpdateInvalid, match="not finite"):
        check_tensors(CLIENT, tmp_path / "update", shapes, ADAPTER)


def test_negative_fisher_is_refused_and_a_negative_weight_is_not(tmp_path: Path) -> None:
    negative = tensors(down=np.full((2, 8), -1e-30, np.float32))
    assert f"Fisher information {DOWN} has a negative value" in refusal_of(tmp_path, negative, is_fisher=True)
    check_tensors(CLIENT, tmp_path / "update", SHAPES, ADAPTER)


@pytest.mark.parametrize("value", [np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal, 0.0, -0.0])
def test_the_ends_of_float32_are_numbers_as_any_other(tmp_path: Path, value: float) -> None:
    save_file(tensors(up=np.full((8, 2), value, np.float32)), tmp_path / "update")
    check_tensors(CLIENT, tmp_path / "update", SHAPES, FISHER)


def test_another_rank_is_said_in_words(tmp_path: Path) -> None:
    lower = adapter_shapes(["image"], 8, 1)
    words = refusal_of(tmp_path, {name: np.ones(shape, np.float32) for name, shape in lower.items()})
    assert f"{DOWN} has rank 1, but the run's adapter has rank 2" in words
    assert f"{UP} has rank 3, but" in refusal_of(tmp_path, tensors(up=np.ones((8, 3), np.float32)))


def test_another_shape_is_refused_with_both(tmp_path: Path) -> None:
    assert "has shape [2, 7], not [2, 8]" in refusal_of(tmp_path, tensors(down=np.ones((2, 7), np.float32)))
    assert "has shape [16], not [2, 8]" in refusal_of(tmp_path, tensors(down=np.ones(16, np.float32)))


@pytest.mark.parametrize(("dtype", "said"), [(np.float16, "F16"), (np.float64, "F64"), (np.int32, "I32")])
def test_another_type_is_refused_with_both(tmp_path: Path, dtype: type[np.generic], said: str) -> None:
    assert f"{UP} has type {said}, not F32" in refusal_of(tmp_path, tensors(up=np.ones((8, 2), dtype)))


def test_a_missing_and_a_foreign_tensor_are_named(tmp_path: Path) -> None:
    assert f"{UP} is missing" in refusal_of(tmp_path, {DOWN: np.ones((2, 8), np.float32)})
    foreign = tensors(other=np.ones(1, np.float32))
    assert "other is not a part of the run's adapter" in refusal_of(tmp_path, foreign)


def write(path: Path, header: Mapping[str, Any] | str, content: bytes) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + content)
    return path


def entry(shape: tuple[int, ...], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}


GOOD_HEADER = {DOWN: entry((2, 8), 0, 64), UP: entry((8, 2), 64, 128)}
ONES = np.ones(32, np.float32).tobytes()


def test_the_crafted_file_itself_is_sound(tmp_path: Path) -> None:
    check_tensors(CLIENT, write(tmp_path / "update", GOOD_HEADER, ONES), SHAPES, FISHER)


def test_tensors_in_another_order_in_the_file_are_read_from_their_places(tmp_path: Path) -> None:
    header = {DOWN: entry((2, 8), 64, 128), UP: entry((8, 2), 0, 64)}
    content = np.ones(32, np.float32)
    content[20] = -1.0
    path = write(tmp_path / "update", header, content.tobytes())
    assert f"{DOWN} has a negative value" in refusal(path, is_fisher=True)


@pytest.mark.parametrize(
    ("header", "content"),
    [
        pytest.param({DOWN: entry((2, 8), 0, 64), UP: entry((8, 2), 0, 64)}, ONES[:64], id="overlap"),
        pytest.param({DOWN: entry((2, 8), 0, 64), UP: entry((8, 2), 32, 96)}, ONES[:96], id="half an overlap"),
        pytest.param({DOWN: entry((2, 8), 0, 64), UP: entry((8, 2), 68, 132)}, ONES + b"gap.", id="gap"),
        pytest.param(GOOD_HEADER, ONES + b"more", id="trailing bytes"),
        pytest.param(GOOD_HEADER, ONES[:-1], id="too short"),
        pytest.param({DOWN: entry((2, 8), 0, 60), UP: entry((8, 2), 60, 124)}, ONES[:124], id="shape and bytes differ"),
        pytest.param({DOWN: entry((2, 8), 64, 0), UP: entry((8, 2), 64, 128)}, ONES, id="backwards"),
        pytest.param({DOWN: entry((2, 8), -64, 0), UP: entry((8, 2), 0, 64)}, ONES[:64], id="before the start"),
        pytest.param({DOWN: entry((2**40, 2**40), 0, 64), UP: entry((8, 2), 64, 128)}, ONES, id="size overflows"),
        pytest.param("[" * 30_000, b"", id="deep nesting"),
        pytest.param("{}", b"", id="no tensor"),
        pytest.param("not json", ONES, id="no header"),
    ],
)
def test_a_crafted_header_is_refused(tmp_path: Path, header: Mapping[str, Any] | str, content: bytes) -> None:
    refusal(write(tmp_path / "update", header, content))


def test_of_a_name_given_twice_nothing_unchecked_is_merged(tmp_path: Path) -> None:
    """Whichever of the two a reader takes, no byte is left over for the other."""
    twice = json.dumps(GOOD_HEADER)[:-1] + f', "{UP}": {json.dumps(entry((8, 2), 128, 192))}}}'
    content = ONES + np.full(16, np.nan, np.float32).tobytes()
    refusal(write(tmp_path / "update", twice, content))


def test_metadata_is_bounded(tmp_path: Path) -> None:
    fitting = GOOD_HEADER | {"__metadata__": {"note": "x" * 1000}}
    check_tensors(CLIENT, write(tmp_path / "update", fitting, ONES), SHAPES, ADAPTER)
    huge = GOOD_HEADER | {"__metadata__": {"note": "x" * HEADER_BYTES}}
    assert f"{HEADER_BYTES} are allowed" in refusal(write(tmp_path / "update", huge, ONES))


@pytest.mark.parametrize("content", [b"", b"\x01", (2**63).to_bytes(8, "little") + b"{}"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "update").write_bytes(content)
    refusal(tmp_path / "update")


def test_a_file_has_room_for_the_tensors_and_a_header() -> None:
    assert max_file_bytes(SHAPES) == HEADER_BYTES + 4 * 32


def test_another_base_adapter_is_refused_with_both_digests() -> None:
    check_base(CLIENT, "abc", "abc")
    for announced, said in (("abd", "abd"), ("", "none")):
        with pytest.raises(UpdateInvalid, match=f"starts from adapter {said}, but the round's is abc"):
            check_base(CLIENT, announced, "abc")


def gram_file(path: Path, half: list[float]) -> Path:
    save_file({"image.gram": np.array(half, np.float32)}, path)
    return path


def test_a_gram_matrix_that_can_be_one_is_accepted(tmp_path: Path) -> None:
    for half in ([2.0, 1.0, 0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1e-30, 0.0, 1e30]):
        check_tensors(CLIENT, gram_file(tmp_path / "gram", half), {"image.gram": (3,)}, GRAM)


@pytest.mark.parametrize("half", [[1.0, 2.0, 1.0], [-1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
def test_a_gram_matrix_that_cannot_be_one_is_refused_by_name(tmp_path: Path, half: list[float]) -> None:
    with pytest.raises(UpdateInvalid, match=r"Gram matrices image\.gram is not positive semi-definite"):
        check_tensors(CLIENT, gram_file(tmp_path / "gram", half), {"image.gram": (3,)}, GRAM)


def test_a_low_rank_gram_needs_a_diagonal_that_is_not_negative(tmp_path: Path) -> None:
    shapes = {"image.gram.diagonal": (2,), "image.gram.factor": (2, 1)}
    tensors = {"image.gram.factor": np.ones((2, 1), np.float32), "image.gram.diagonal": np.ones(2, np.float32)}
    save_file(tensors, tmp_path / "gram")
    check_tensors(CLIENT, tmp_path / "gram", shapes, GRAM)
    save_file({**tensors, "image.gram.diagonal": -tensors["image.gram.diagonal"]}, tmp_path / "gram")
    with pytest.raises(UpdateInvalid, match="negative"):
        check_tensors(CLIENT, tmp_path / "gram", shapes, GRAM)
