"""The benchmark of a round keeps up with what it measures; its figures are not judged here."""

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_the_race_of_ours_and_the_floor_gives_figures_of_both() -> None:
    command = [sys.executable, "-m", "benchmarks.round", "--only", "ours,floor", "--transport", "plaintext", "--json"]
    smallest = ["--rounds", "1", "--clients", "2", "--repeats", "1"]
    ended = subprocess.run([*command, *smallest], cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    standings = json.loads(ended.stdout)["standings"]
    assert {one["contestant"] for one in standings} == {"ours", "floor"}
    assert all(
        one["repeats"][0]["server_cpu_s"] > 0 and one["repeats"][0]["server_peak_bytes"] > 0 for one in standings
    )
