"""A run's history of measurements as a CSV file, as JSON, or as TensorBoard's event files."""

import csv
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TextIO

from fednano.cli.output import last, to_json
from fednano.errors import SettingsInvalid
from fednano.v1 import run_pb2, run_service_pb2

STDOUT = "-"
COLUMNS = ("sequence", "create_time", "round", "client", "key", "value")


class ExportFormat(StrEnum):
    CSV = "csv"
    JSON = "json"
    TENSORBOARD = "tensorboard"


async def export_measurements(
    measurements: AsyncIterator[run_pb2.Measurement], form: ExportFormat, out: str, *, as_json: bool
) -> int:
    """Writes all measurements to ``out`` and returns how many they were; a file is there whole or not at all."""
    if form is ExportFormat.TENSORBOARD:
        if out == STDOUT:
            raise SettingsInvalid("--out: tensorboard needs a folder")
        return await _write_tensorboard(measurements, _made(Path(out)))
    if as_json and out == STDOUT and form is ExportFormat.CSV:
        raise SettingsInvalid("--json prints JSON to stdout: give --format json, or a file as --out")
    with _opened(out) as file:
        return await (_write_csv if form is ExportFormat.CSV else _write_json)(measurements, file)


async def _write_csv(measurements: AsyncIterator[run_pb2.Measurement], file: TextIO) -> int:
    writer, count = csv.writer(file), 0
    writer.writerow(COLUMNS)
    async for one in measurements:
        time = one.create_time.ToJsonString()
        # repr gives the shortest digits that are read back as the same number.
        writer.writerow((one.sequence, time, one.round_number, last(one.client), one.key, repr(one.value)))
        count += 1
    return count


async def _write_json(measurements: AsyncIterator[run_pb2.Measurement], file: TextIO) -> int:
    found = [one async for one in measurements]
    file.write(to_json(run_service_pb2.ListMeasurementsResponse(measurements=found)) + "\n")
    return len(found)


class ScalarWriter(Protocol):
    """What is used of tensorboardX.SummaryWriter."""

    def add_scalar(self, tag: str, value: float, step: int, walltime: float, /) -> None: ...

    def close(self) -> None: ...


async def _write_tensorboard(measurements: AsyncIterator[run_pb2.Measurement], folder: Path) -> int:
    """One TensorBoard run for the rounds, and one for each client under clients/."""
    writers: dict[str, ScalarWriter] = {}
    count = 0
    with ExitStack() as stack:
        async for one in measurements:
            if one.client not in writers:
                at = folder / "clients" / last(one.client) if one.client else folder / "round"
                writers[one.client] = _scalar_writer(at)
                stack.callback(writers[one.client].close)
            time_s = one.create_time.ToMicroseconds() / 1e6
            writers[one.client].add_scalar(one.key, one.value, one.round_number, time_s)
            count += 1
    return count


def _made(folder: Path) -> Path:
    """Of a run without a measurement too, and a file in its place is told of at once."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _scalar_writer(folder: Path) -> ScalarWriter:
    # Here, for it comes with an extra of its own.
    from tensorboardX import SummaryWriter

    writer: ScalarWriter = SummaryWriter(str(folder))
    return writer


@contextmanager
def _opened(out: str) -> Iterator[TextIO]:
    if out == STDOUT:
        yield sys.stdout
        return
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("w", newline="", encoding="utf-8") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
