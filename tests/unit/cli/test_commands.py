"""Every command has the common options, and failures become exit codes and one clear line."""

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from fednano.cli.app import app
from fednano.cli.commands import check_address
from fednano.cli.exits import exit_code, printable
from fednano.errors import FednanoError, PeerUnavailable, ResourceNotFound, RunEnded, SettingsInvalid

CONNECTION = {"--aggregator", "--insecure", "--token-file", "--tls-ca", "--tls-cert", "--tls-key", "--timeout"}
# They start services of their own, or need none but the one they name.
WITHOUT_AGGREGATOR = {
    *("demo", "ask", "params", "audit verify", "client doctor", "client enroll", "experiment", "examples make"),
    *(f"data {name}" for name in ("import", "partition", "check", "score")),
    *(f"certs {name}" for name in ("init", "issue", "revoke", "show")),
    *("model split", "model convert-minigpt4", "model fetch"),
}
OPERATOR_COMMANDS = {
    *(f"run {name}" for name in ("create", "list", "get", "watch", "cancel", "pause", "resume", "export")),
    *(f"round {name}" for name in ("list", "get")),
    *(f"client {name}" for name in ("list", "get", "evict", "token create", "token list", "token revoke")),
    *(f"adapter {name}" for name in ("export", "inspect")),
    "status",
}


def commands(group: Any, path: str = "") -> Iterator[tuple[str, set[str]]]:
    """The whole name of every command, and its options."""
    for name, command in group.commands.items():
        whole = f"{path} {name}".strip()
        if hasattr(command, "commands"):
            yield from commands(command, whole)
        else:
            yield whole, {option for parameter in command.params for option in parameter.opts}


EVERY_COMMAND = dict(commands(typer.main.get_command(app)))


def test_an_operator_finds_every_command() -> None:
    assert set(EVERY_COMMAND) == OPERATOR_COMMANDS | WITHOUT_AGGREGATOR


@pytest.mark.parametrize("name", sorted(EVERY_COMMAND))
def test_every_command_speaks_json(name: str) -> None:
    assert "--json" in EVERY_COMMAND[name]


@pytest.mark.parametrize("name", sorted(OPERATOR_COMMANDS))
def test_every_operators_command_says_how_it_connects(name: str) -> None:
    assert EVERY_COMMAND[name] >= CONNECTION


@pytest.mark.parametrize("name", sorted(OPERATOR_COMMANDS))
def test_the_help_of_every_command_names_the_exit_codes(name: str) -> None:
    shown = CliRunner().invoke(app, [*name.split(), "--help"])
    assert shown.exit_code == 0
    assert "3 no such run" in " ".join(shown.output.split())


@pytest.mark.parametrize("address", ["", "localhost", ":7000", "localhost:", "localhost:0", "localhost:70000", "a:b"])
def test_an_address_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(SettingsInvalid, match="host:port"):
        check_address(address, "--aggregator")


def test_without_an_address_the_flag_and_the_variable_are_named() -> None:
    done = CliRunner().invoke(app, ["run", "list", "--insecure"], env={"FEDNANO_AGGREGATOR": ""})
    assert done.exit_code == 2
    assert "give --aggregator HOST:PORT, or set FEDNANO_AGGREGATOR" in done.stderr


def test_without_certificates_the_missing_flags_are_named() -> None:
    done = CliRunner().invoke(app, ["run", "list", "--aggregator", "127.0.0.1:7000", "--tls-ca", "ca.pem"])
    assert done.exit_code == 2
    assert "give --tls-cert, --tls-key, or --insecure" in done.stderr


def test_the_environment_stands_in_for_flags() -> None:
    environment = {"FEDNANO_AGGREGATOR": "no-port", "FEDNANO_INSECURE": "1"}
    done = CliRunner().invoke(app, ["run", "list"], env=environment)
    assert done.stderr == "fednano: --aggregator: 'no-port' is no host:port, such as 127.0.0.1:7000\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunEnded("over"), 1),
        (SettingsInvalid("wrong"), 2),
        (ResourceNotFound("none"), 3),
        (PeerUnavailable("away"), 4),
    ],
)
def test_each_failure_has_its_exit_code(error: FednanoError, code: int) -> None:
    assert exit_code(error) == code


def test_a_peers_words_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc") == "a\ufffd[2Jb\nc"
