"""`fednano client doctor`: whether a client with these settings can do its work on this machine."""

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fednano.cli.exits import EXIT_WORDS, or_exit
from fednano.errors import SettingsInvalid

# Looking through many pictures takes long; nothing else does.
TIMEOUT_S = 3600.0
PREFIX = "FEDNANO_"


def register(app: typer.Typer) -> None:
    app.command(
        "doctor",
        epilog=EXIT_WORDS,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(client_doctor)


def client_doctor(
    context: typer.Context,
    env: Annotated[Path | None, typer.Option(help="The client's settings, such as client.env of an enrolment.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else to stdout.")] = False,
) -> None:
    """Checks device, memory, disk, model, examples, certificate, peers and clock, each with the next step.

    Takes every flag of `python -m services.client` and the FEDNANO_* variables that it reads. Exit code 0: nothing
    fails, though there may be warnings.
    """

    def work() -> int:
        if find_spec("torch") is None:
            raise SettingsInvalid("a client needs torch, which is not installed here: pip install 'fednano[client]'")
        # A process of its own: the commands import nothing of the services.
        command = [sys.executable, "-m", "services.client.doctor", *context.args, *(["--json"] if as_json else [])]
        settings = read_env(env) if env is not None else {}
        ended = subprocess.run(  # noqa: S603 - the command is our own
            command, env=os.environ | settings, timeout=TIMEOUT_S, check=False
        )
        return ended.returncode

    code = or_exit(work, interrupted="stopped")
    if code:
        raise typer.Exit(code)


def read_env(path: Path) -> Mapping[str, str]:
    """The FEDNANO_* lines of an environment file, which win over the environment. Raises SettingsInvalid."""
    if not path.is_file():
        raise SettingsInvalid(f"--env: no file at {path}: `fednano client enroll` writes client.env")
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError:
        raise SettingsInvalid(f"--env: {path} holds no text: `fednano client enroll` writes client.env") from None
    found = {}
    for number, line in enumerate(lines, start=1):
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if not name or name.startswith("#"):
            continue
        if not equals or not name.startswith(PREFIX):
            raise SettingsInvalid(f"--env: {path}, line {number}: {PREFIX}NAME=value is needed")
        found[name] = value.strip().strip("\"'")
    return found
