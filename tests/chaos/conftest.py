"""What the chaos tests compare with."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_run import assert_undisturbed, run_federation

DISK_BYTES = 16 << 20


@pytest.fixture(scope="session")
def undisturbed_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The final adapter's digest of a run of paced clients that nothing has happened to."""
    found = asyncio.run(run_federation(tmp_path_factory.mktemp("undisturbed")))
    assert_undisturbed(found, found.digest)
    return found.digest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes, gone after the test, and also when the tests are killed."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(place)], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.decode().strip()}")
    # Waits for the end of its input, which comes when this process closes it or dies.
    unmount = ["sh", "-c", 'read -r _; umount -l "$1"', "sh", str(place)]
    with subprocess.Popen(unmount, stdin=subprocess.PIPE, start_new_session=True):
        yield place
