"""What an update is refused for, in words that the client and the operator both see."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from aggregator_inside import aggregator_inside
from aggregator_process import RandomClient, connect
from safetensors.numpy import load_file, save_file
from upload_training import RUN, Training, begin, refused

from fednano.errors import (
    ClientNotSelected,
    DigestMismatch,
    FieldInvalid,
    RoundClosed,
    StreamMalformed,
    UpdateInvalid,
    WireError,
)
from fednano.v1 import aggregator_service_pb2 as pb


@pytest.fixture
async def training(tmp_path: Path) -> AsyncIterator[Training]:
    async with aggregator_inside(tmp_path / "state") as address, connect(address) as channel:
        yield await begin(channel, tmp_path / "state", tmp_path)


# What is done to the header of an update before it is announced, and what it is refused with.
HEADERS: list[tuple[str, Callable[[pb.UpdateHeader], object], type[WireError], str]] = [
    ("oversize", lambda header: setattr(header.artifacts[1], "size_bytes", 1 << 30), FieldInvalid, str(1 << 30)),
    ("no size", lambda header: setattr(header.artifacts[0], "size_bytes", 0), FieldInvalid, "size_bytes is 0"),
    ("base", lambda header: setattr(header, "base_adapter_sha256", "f" * 64), UpdateInvalid, "f" * 64),
    ("no base", lambda header: setattr(header, "base_adapter_sha256", ""), UpdateInvalid, "none"),
    ("adapter alone", lambda header: header.artifacts.pop(), FieldInvalid, "ARTIFACT_KIND_FISHER"),
    ("too many examples", lambda header: setattr(header, "example_count", 11), FieldInvalid, "1 to 10"),
    ("no example", lambda header: setattr(header, "example_count", 0), FieldInvalid, "1 to 10"),
]


@pytest.mark.parametrize(
    ("change", "error_class", "words"), [case[1:] for case in HEADERS], ids=[c[0] for c in HEADERS]
)
async def test_a_header_that_cannot_be_is_refused_before_a_byte_is_written(
    training: Training, change: Callable[[pb.UpdateHeader], object], error_class: type[WireError], words: str
) -> None:
    header, files = training.a.offer(training.task)
    change(header)
    error = await refused(lambda: training.a.upload(header, files))
    assert type(error) is error_class
    assert words in error.message
    assert training.incoming == []
    assert (await refused(lambda: training.a.received(header))).message == error.message
    assert await training.refusal_of(training.a) == (await training.participant(training.a)).refusal == error.message
    # The round still takes what is right.
    assert await training.a.train(training.task) == 1
    assert await training.refusal_of(training.a) == (await training.participant(training.a)).refusal == ""


def without_a_tensor(tensors: dict[str, np.ndarray]) -> None:
    del tensors["text.up.weight"]


def with_another_tensor(tensors: dict[str, np.ndarray]) -> None:
    tensors["head.weight"] = np.zeros(2, np.float32)


def of_another_rank(tensors: dict[str, np.ndarray]) -> None:
    tensors["text.up.weight"] = np.zeros((8, 1), np.float32)


def of_another_type(tensors: dict[str, np.ndarray]) -> None:
    tensors["text.up.weight"] = tensors["text.up.weight"].astype(np.float16)


def with_nan(tensors: dict[str, np.ndarray]) -> None:
    tensors["text.up.weight"][0, 0] = np.nan


def negative(tensors: dict[str, np.ndarray]) -> None:
    tensors["text.up.weight"][0, 0] = -1e-9


@pytest.mark.parametrize(
    ("which", "spoil", "words"),
    [
        (0, without_a_tensor, "adapter text.up.weight is missing"),
        (1, without_a_tensor, "Fisher information text.up.weight is missing"),
        (0, with_another_tensor, "head.weight is not a part"),
        (0, of_another_rank, "has rank 1, but the run's adapter has rank 2"),
        (1, of_another_rank, "has rank 1, but the run's adapter has rank 2"),
        (0, of_another_type, "has type F16, not F32"),
        (0, with_nan, "not finite"),
        (1, with_nan, "not finite"),
        (1, negative, "negative"),
    ],
)
async def test_an_update_that_cannot_be_merged_is_refused_by_tensor(
    training: Training, which: int, spoil: Callable[[dict[str, np.ndarray]], None], words: str
) -> None:
    before = training.artifacts
    _, files = training.a.offer(training.task)
    tensors = load_file(files[which])
    spoil(tensors)
    save_file(tensors, files[which])
    header = training.a.announce(training.task, files)
    error = await refused(lambda: training.a.upload(header, files))
    assert isinstance(error, UpdateInvalid)
    assert words in error.message
    assert await training.refusal_of(training.a) == (await training.participant(training.a)).refusal == error.message
    assert (training.artifacts, training.incoming) == (before, [])


async def test_bytes_that_are_not_the_announced_ones_are_refused_and_dropped(training: Training) -> None:
    header, files = training.a.offer(training.task)
    header.artifacts[1].sha256 = "0" * 64
    error = await refused(lambda: training.a.upload(header, files))
    assert isinstance(error, DigestMismatch)
    assert training.incoming == []


async def test_more_bytes_than_announced_and_a_gap_are_refused(training: Training) -> None:
    header, files = training.a.offer(training.task)
    header.artifacts[1].size_bytes -= 1
    assert isinstance(await refused(lambda: training.a.upload(header, files)), StreamMalformed)
    header, files = training.a.offer(training.task)
    assert isinstance(await refused(lambda: training.a.upload(header, files, start=5)), StreamMalformed)


async def test_who_was_not_selected_is_refused_and_the_operator_sees_why(training: Training) -> None:
    late = RandomClient(training.channel, "late", training.a.folder)
    await late.join()
    error = await refused(lambda: late.train(training.task))
    assert isinstance(error, ClientNotSelected)
    assert await training.refusal_of(late) == error.message


async def test_a_round_that_has_closed_takes_no_more(training: Training) -> None:
    late_header, late_files = training.a.offer(training.task)
    late_header.round = f"{RUN}/rounds/0"
    error = await refused(lambda: training.a.upload(late_header, late_files))
    assert isinstance(error, RoundClosed)
    assert "STATE_SUCCEEDED" in error.message
