"""The engine, images made from this checkout, and one federation for all tests, taken down with all that is its own."""

import subprocess
from collections.abc import Iterator

import docker
import pytest
from docker.errors import DockerException
from federation import REPOSITORY, Federation

BUILD_TIMEOUT_S = 1500.0
RUN_TIMEOUT_S = 900.0
SETTINGS = {
    "FEDNANO_CLIENT_SLOTS": "5",
    "FEDNANO_ROUNDS": "4",
    # What is kept out of logs is kept out of the longest ones.
    "FEDNANO_LOG_LEVEL": "DEBUG",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if REPOSITORY / "tests" / "e2e" in item.path.parents:
            item.add_marker(pytest.mark.docker)
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT_S))


@pytest.fixture(scope="session", autouse=True)
def _engine() -> None:
    """Skips all where there is none."""
    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        pytest.skip(f"no container engine answers: {error}")
    client.close()


@pytest.fixture(scope="session")
def revision() -> str:
    command = ["git", "rev-parse", "HEAD"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return ended.stdout.strip() or "unknown"


@pytest.fixture(scope="session")
def built(revision: str) -> Iterator[Federation]:
    """The images, and nothing started yet."""
    federation = Federation("fednano-e2e", {**SETTINGS, "FEDNANO_REVISION": revision})
    federation.remove()
    federation.must("build", timeout_s=BUILD_TIMEOUT_S)
    yield federation
    federation.remove()
    federation.engine.close()


@pytest.fixture(scope="session")
def federation(built: Federation) -> Federation:
    """Its first run has ended."""
    built.up()
    built.first_watch = built.wait_for_end(RUN_TIMEOUT_S)
    return built
