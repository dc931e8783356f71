import json

from typer.testing import CliRunner

from fednano.cli.app import app

runner = CliRunner()


def test_the_paper_s_accounting_is_printed_as_json() -> None:
    result = runner.invoke(app, ["params", "--preset", "llava-1.5-7b", "--rank", "64", "--json"])
    paper = json.loads(result.stdout)["paper"]
    printed = [paper[name] for name in ("client", "clientPercent", "upload", "uploadPercent")]
    assert printed == ["304.55 M", "4.30 %", "1.05 M", "0.01 %"]


def test_tables_name_every_part() -> None:
    result = runner.invoke(app, ["params"])
    assert result.exit_code == 0
    for words in ("304.55 M = 4.30 %", "token embedding", "round fisher up", "round fisher pass", "server passes"):
        assert words in result.stdout


def test_the_fisher_pass_is_over_the_examples_of_the_steps_unless_said_otherwise() -> None:
    def moved(*flags: str) -> dict[str, int]:
        found = runner.invoke(app, ["params", "--local-steps", "7", "--batch-size", "3", "--json", *flags])
        return dict(json.loads(found.stdout)["bytes"])

    assert moved()["round_fisher_pass"] == moved()["round_steps"] > 0
    assert moved("--fisher-examples", "0")["round_fisher_pass"] == 0


def test_an_unknown_preset_names_those_there_are() -> None:
    result = runner.invoke(app, ["params", "--preset", "gpt"])
    assert result.exit_code == 2
    assert "llava-1.5-7b, llava-1.5-13b" in result.stderr
