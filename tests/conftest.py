"""What all tests need of the process that they run in."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Where the tests run in the background, they inherit that Ctrl-C is ignored, and so would all their processes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
