"""`fednano run create`."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from fednano.cli.commands import Command, operator_command
from fednano.cli.method_flags import MethodFlags
from fednano.cli.model_choice import ask_server, with_folder, with_model
from fednano.cli.names import run_name
from fednano.cli.run_commands import WATCH_STOPPED, run_rows, watch
from fednano.cli.run_config import ConfigFlags, run_config
from fednano.errors import SettingsInvalid
from fednano.v1 import run_pb2, run_service_pb2


@dataclass(frozen=True, kw_only=True)
class Creation:
    """What `run create` asks besides the configuration."""

    config: Annotated[
        Path | None, typer.Option(help="RunConfig as protobuf JSON, or TOML with its names; flags win.")
    ] = None
    title: Annotated[str, typer.Option(help="What people call the run.")] = ""
    request_id: Annotated[str, typer.Option(help="UUID: the same one again creates nothing new.")] = ""
    server: Annotated[
        str, typer.Option(envvar="FEDNANO_SERVER", help="host:port of an LLM server, to take its model.")
    ] = ""
    model: Annotated[str, typer.Option(help="Or the model's preset or folder.")] = ""
    wait: Annotated[bool, typer.Option("--wait", help="Watch the run until it has ended.")] = False


def register(app: typer.Typer) -> None:
    """Makes it a command of `run`, whose other ones are in run_commands.py."""
    operator_command(app, "create", interrupted=WATCH_STOPPED)(run_create)


async def run_create(
    command: Command,
    creation: Creation,
    flags: ConfigFlags,
    method_flags: MethodFlags,
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="Its name; one is made up when absent.")] = "",
) -> None:
    """Creates a run. With --wait, the exit code is 1 where it did not succeed."""
    config = run_config(creation.config, await _with_model(command, creation, flags), method_flags)
    if not config.model_digest or not config.adapter.hidden_size:
        raise SettingsInvalid("say which model: --server, --model, or --model-digest and --hidden-size, or --config")
    request = run_service_pb2.CreateRunRequest(
        run_id=run_name(run).run if run else "",
        run=run_pb2.Run(display_name=creation.title, config=config),
        request_id=creation.request_id or str(uuid.uuid4()),
    )
    async with command.operator() as operator:
        created = await operator.create(request)
    if not (creation.wait and command.as_json):
        command.output.message(created, run_rows(created))
    if creation.wait:
        await watch(command, created.name)


async def _with_model(command: Command, creation: Creation, flags: ConfigFlags) -> ConfigFlags:
    if creation.server and not creation.model:
        model = await ask_server(creation.server, command.security, command.patience_s())
        return with_model(flags, model.digest, model.hidden_size)
    return with_folder(flags, creation.model) if creation.model else flags
