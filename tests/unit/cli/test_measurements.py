"""A run's history as CSV, JSON and TensorBoard's event files."""

import csv
import json
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tensorboardX.proto.event_pb2 import Event

from fednano.cli.measurements import ExportFormat, export_measurements
from fednano.errors import SettingsInvalid
from fednano.v1 import run_pb2

CLIENT = "runs/demo/clients/client-1"
HISTORY = (
    run_pb2.Measurement(sequence=1, create_time=Timestamp(seconds=5), round_number=0, key="test/accuracy", value=0.1),
    run_pb2.Measurement(
        sequence=2, create_time=Timestamp(seconds=6), round_number=1, client=CLIENT, key="train/loss", value=1 / 3
    ),
    run_pb2.Measurement(sequence=3, create_time=Timestamp(seconds=7), round_number=1, key='odd,"key', value=1e-300),
)


async def history() -> AsyncIterator[run_pb2.Measurement]:
    for measurement in HISTORY:
        yield measurement


async def test_csv_keeps_every_digit_and_every_letter(tmp_path: Path) -> None:
    out = tmp_path / "new" / "history.csv"
    assert await export_measurements(history(), ExportFormat.CSV, str(out), as_json=False) == 3
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [0.1, 1 / 3, 1e-300]
    assert [(row["round"], row["client"], row["key"]) for row in rows] == [
        ("0", "", "test/accuracy"),
        ("1", "client-1", "train/loss"),
        ("1", "", 'odd,"key'),
    ]


async def test_json_is_the_contracts(tmp_path: Path) -> None:
    out = tmp_path / "history.json"
    await export_measurements(history(), ExportFormat.JSON, str(out), as_json=False)
    found = json.loads(out.read_text())["measurements"]
    assert [one["sequence"] for one in found] == ["1", "2", "3"]
    assert found[1]["client"] == CLIENT


async def test_a_file_that_broke_off_is_not_there(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[run_pb2.Measurement]:
        yield HISTORY[0]
        raise SettingsInvalid("gone")

    out = tmp_path / "history.csv"
    with pytest.raises(SettingsInvalid):
        await export_measurements(broken(), ExportFormat.CSV, str(out), as_json=False)
    assert names_in(tmp_path) == []


async def test_tensorboard_has_the_rounds_and_each_client(tmp_path: Path) -> None:
    await export_measurements(history(), ExportFormat.TENSORBOARD, str(tmp_path), as_json=False)
    assert scalars(tmp_path / "round") == [("test/accuracy", 0, 5.0, pytest.approx(0.1)), ("odd__key", 1, 7.0, 0.0)]
    assert scalars(tmp_path / "clients" / "client-1") == [("train/loss", 1, 6.0, pytest.approx(1 / 3))]


async def test_the_extra_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ModuleNotFoundError) as missing:
        await export_measurements(history(), ExportFormat.TENSORBOARD, str(tmp_path), as_json=False)
    assert missing.value.name == "tensorboardX"


def scalars(folder: Path) -> list[tuple[str, int, float, float]]:
    (file,) = folder.glob("events.*")
    return [
        (value.tag, event.step, event.wall_time, value.simple_value)
        for event in events(file.read_bytes())
        for value in event.summary.value
    ]


def events(content: bytes) -> Iterator[Event]:
    """Each record: its length as 8 bytes, 4 of a checksum, the message, 4 of a checksum."""
    offset = 0
    while offset < len(content):
        (length,) = struct.unpack_from("<Q", content, offset)
        yield Event.FromString(content[offset + 12 : offset + 12 + length])
        offset += 16 + length


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_a_file_in_tensorboards_place_is_told_of_without_a_measurement_too(tmp_path: Path) -> None:
    async def nothing() -> AsyncIterator[run_pb2.Measurement]:
        measurements: list[run_pb2.Measurement] = []
        for measurement in measurements:
            yield measurement

    out = tmp_path / "file"
    out.write_text("notes")
    with pytest.raises(FileExistsError):
        await export_measurements(nothing(), ExportFormat.TENSORBOARD, str(out), as_json=False)
