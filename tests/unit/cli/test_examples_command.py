"""`fednano examples make`: whole, once, and left alone afterwards."""

import json
from pathlib import Path

from typer.testing import CliRunner

from fednano.cli.app import app

FEW = ["--clients", "2", "--train-examples", "40", "--test-examples", "40", "--json"]


def make(out: Path) -> dict[str, object]:
    result = CliRunner().invoke(app, ["examples", "make", str(out), *FEW])
    assert result.exit_code == 0, result.output
    answer: dict[str, object] = json.loads(result.stdout)
    return answer


def test_examples_are_made_once(tmp_path: Path) -> None:
    out = tmp_path / "icons"
    (tmp_path / ".icons.draft" / "client-1").mkdir(parents=True)
    assert make(out) == {"out": str(out), "made": True}
    problems = (out / "client-2" / "problems.json").read_bytes()
    assert make(out) == {"out": str(out), "made": False}
    assert (out / "client-2" / "problems.json").read_bytes() == problems
    assert sorted(path.name for path in tmp_path.iterdir()) == ["icons"]
