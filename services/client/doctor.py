"""python -m services.client.doctor: whether the client with these settings can do its work here, before it does.

`fednano client doctor` calls it. Exit status: 0 where nothing fails, 1 where something does, 2 for wrong settings.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TextIO

import torch

from fednano.config import read_settings
from fednano.errors import FednanoError, SettingsInvalid
from fednano.model.parts import EdgeParts
from fednano.telemetry import configure_logging
from services.client.checks import Row, fail
from services.client.local_checks import (
    check_certificate,
    check_device,
    check_disk,
    check_examples,
    check_memory,
    load_model,
)
from services.client.peer_checks import check_peers
from services.client.settings import ClientSettings

JSON_FLAG = "--json"
MARKS = {"ok": "ok", "warn": "WARN", "fail": "FAIL"}


def main() -> int:
    arguments = [argument for argument in sys.argv[1:] if argument != JSON_FLAG]
    as_json = len(arguments) < len(sys.argv) - 1
    configure_logging("doctor", level="ERROR")
    # Whatever a library prints: the result alone is for the one who reads it.
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        try:
            settings = read_settings(ClientSettings, arguments)
        except SettingsInvalid as error:
            _show([fail("settings", error.message, "set it right, in client.env or as a flag")], as_json, out)
            return 2
        torch.set_num_threads(settings.threads)
        rows = list(examine(settings))
        _show(rows, as_json, out)
    return int(any(row.state == "fail" for row in rows))


def examine(settings: ClientSettings) -> Iterator[Row]:
    """The checks, in their order; one that fails keeps only those from running that build on it."""
    yield from _guarded("device", lambda: check_device(settings))
    parts: list[EdgeParts] = []
    yield from _guarded("model", lambda: load_model(settings, parts))
    yield from _guarded("memory", lambda: check_memory(settings, parts[0] if parts else None))
    yield from _guarded("disk", lambda: check_disk(settings))
    yield from _guarded("examples", lambda: check_examples(settings, parts[0] if parts else None))
    yield from _guarded("certificate", lambda: check_certificate(settings))
    digest = parts[0].manifest.digest if parts else ""
    yield from asyncio.run(check_peers(settings, digest))


def _guarded(check: str, rows: Callable[[], Sequence[Row]]) -> Iterator[Row]:
    try:
        yield from rows()
    except FednanoError as error:
        yield fail(check, error.message)
    except OSError as error:
        yield fail(check, f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))


def _show(rows: Sequence[Row], as_json: bool, out: TextIO) -> None:
    if as_json:
        facts = {"ok": all(row.state != "fail" for row in rows), "checks": [asdict(row) for row in rows]}
        out.write(json.dumps(facts, indent=2) + "\n")
        return
    width = max(len(row.check) for row in rows)
    for row in rows:
        out.write(f"{MARKS[row.state]:4}  {row.check:{width}}  {_printable(row.found)}\n")
        if row.next and row.state != "ok":
            out.write(f"{'':4}  {'':{width}}  -> {_printable(row.next)}\n")


def _printable(text: str) -> str:
    """A peer's words may hold what steers a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text.replace("\n", " "))


if __name__ == "__main__":
    sys.exit(main())
