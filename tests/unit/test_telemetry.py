import json
import subprocess
import sys

PROGRAM = """
import logging
from fednano.telemetry import configure_logging, get_logger
configure_logging("test", json_lines=True)
logging.getLogger("some.library").warning("it is %s", "slow")
logging.getLogger("some.library").info("nobody asked")
get_logger("room").info("ours")
"""


def test_what_libraries_warn_of_is_json_like_our_own_lines() -> None:
    stderr = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True, timeout=60).stderr
    foreign, own = (json.loads(line) for line in stderr.splitlines())
    assert (foreign["event"], foreign["logger"], foreign["level"]) == ("it is slow", "some.library", "warning")
    assert foreign["service"] == own["service"] == "test"
    assert own["event"] == "ours"
