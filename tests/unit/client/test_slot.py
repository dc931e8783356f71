"""Several like clients side by side: each takes another slot, and a slot is free again when its holder is gone."""

import subprocess
import sys
from pathlib import Path

import pytest

from fednano.errors import SettingsInvalid
from services.client.slot import SlotSettings, link_folders, take_slot

# Takes a slot, says which, and holds it until it is told to end; as a real client does it, over an exec.
HOLDER = """
import os, sys
from pathlib import Path
from services.client.slot import SlotSettings, take_slot
print(take_slot(SlotSettings(examples=Path(sys.argv[1]), locks=Path(sys.argv[2]), links=Path(sys.argv[2]))), flush=True)
os.execv(sys.executable, [sys.executable, "-c", "input()"])
"""


@pytest.fixture
def settings(tmp_path: Path) -> SlotSettings:
    for name in ("client-1", "client-2", "client-10"):
        (tmp_path / "examples" / name).mkdir(parents=True)
        (tmp_path / "identities" / name).mkdir(parents=True)
    (tmp_path / "examples" / "notes.txt").write_text("no slot")
    return SlotSettings(
        examples=tmp_path / "examples",
        identities=tmp_path / "identities",
        locks=tmp_path / "locks",
        links=tmp_path / "links",
    )


def holder(settings: SlotSettings) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-c", HOLDER, str(settings.examples), str(settings.locks)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=10)


def test_a_slot_is_held_over_exec_and_free_again_after_a_kill(settings: SlotSettings) -> None:
    first, slot = holder(settings)
    try:
        assert slot == "client-1"
        assert take_slot(settings) == "client-2"
    finally:
        end(first)
    second, slot = holder(settings)
    end(second)
    assert slot == "client-1"


def test_no_free_slot_says_how_many_there_are(settings: SlotSettings) -> None:
    assert [take_slot(settings) for _ in range(3)] == ["client-1", "client-2", "client-10"]
    with pytest.raises(SettingsInvalid, match=r"all 3 slots of .* are taken"):
        take_slot(settings)


def test_the_links_lead_to_the_slots_folders_also_the_second_time(settings: SlotSettings) -> None:
    for slot in ("client-1", "client-2"):
        link_folders(settings, slot)
        assert (settings.links / "examples").resolve() == settings.examples / slot
        assert (settings.links / "identity").resolve() == settings.identities / slot


def test_a_missing_folder_of_examples_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"no folder at .*nothing"):
        take_slot(SlotSettings(examples=tmp_path / "nothing", locks=tmp_path, links=tmp_path))
