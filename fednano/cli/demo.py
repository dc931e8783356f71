"""The demo: a whole federation on this machine, from its data to its report.

The way: data -> server, aggregator and clients as processes -> a run over RPC -> its events -> report, plot, adapter.
"""

import asyncio
import shutil
import time
from dataclasses import replace
from pathlib import Path

from fednano.cli import options as run_options
from fednano.cli.local_federation import (
    PLAINTEXT,
    ClientPart,
    clients_serving,
    get_model,
    metered,
    services_serving,
    start_client,
    start_services,
    supervised,
)
from fednano.cli.operator import Operator
from fednano.cli.options import RUN_ID, RUN_NAME, DemoOptions
from fednano.cli.plot import write_plot
from fednano.cli.processes import Processes
from fednano.cli.report import FinishedRun, Report, make_report, to_json, to_markdown
from fednano.cli.view import RunView
from fednano.data.client_folders import write_client_folders
from fednano.data.folder import ExampleFolder, open_folder, require_splits
from fednano.data.icon_federation import write_icon_federation
from fednano.data.jsonl import EXAMPLES_FILE, JsonlFolder, with_test_split
from fednano.errors import PartFailed
from fednano.rpc.channels import open_channel
from fednano.v1 import run_pb2, run_service_pb2, split_service_pb2


def run_demo(options: DemoOptions, view: RunView) -> Report:
    """Runs the demo and writes its files to ``options.out``; no process of it outlives this call.

    Raises PartFailed when a part ends that should not have, or the run does not succeed.
    """
    started = time.monotonic()
    prepare(options, view)
    with Processes(options.out, view.say) as processes, view:
        finished = asyncio.run(supervised(processes, _federate(options, processes, view, started)))
    report = make_report(finished)
    (options.out / "report.md").write_text(to_markdown(report))
    write_plot(options.out / "plot.png", report, finished.rounds)
    # Last, for its presence says that this demo is complete.
    (options.out / "report.json").write_text(to_json(report))
    return report


def prepare(options: DemoOptions, view: RunView) -> None:
    """Makes the examples and clears what an earlier demo left, unless that was cut short with the same options."""
    out, mark = options.out, options.out / "options.sha256"
    unfinished = mark.is_file() and mark.read_text() == options.fingerprint and not (out / "report.json").exists()
    if unfinished and not options.fresh:
        view.say(f"continuing the unfinished run in {out}; --fresh starts over")
        return
    _clear(out)
    out.mkdir(parents=True, exist_ok=True)
    _write_examples(options, view)
    mark.write_text(options.fingerprint)


def _write_examples(options: DemoOptions, view: RunView) -> None:
    """One folder for each client: of generated icons, or of the user's own examples."""
    folder = options.out / "examples"
    if options.examples is not None:
        own = _own_examples(options.examples, options.clients, view)
        view.say(f"splitting {options.examples} over {options.clients} clients: {folder}")
        write_client_folders(
            own,
            folder,
            client_count=options.clients,
            alpha=options.alpha,
            seed=options.seed,
            minimum_share=options.minimum_share,
            allow_missing_images=False,
        )
        return
    view.say(f"writing the examples of {options.clients} clients to {folder}")
    write_icon_federation(
        folder,
        client_count=options.clients,
        alpha=options.alpha,
        seed=options.seed,
        train_count=options.train_examples,
        val_count=options.defaults.val_examples,
        test_count=options.defaults.test_examples,
    )


def _own_examples(path: Path, client_count: int, view: RunView) -> ExampleFolder:
    """The user's folder, with examples to measure on: where no line says which, some are kept apart."""
    folder = open_folder(path)
    if isinstance(folder, JsonlFolder) and "test" not in folder.splits:
        folder = with_test_split(folder, least=client_count)
        words = f"{len(folder.read('test'))} of {len(folder.lines)} are kept apart, for accuracy alone"
        view.say(f"no line of {path / EXAMPLES_FILE} is of the split test: {words}")
    require_splits(folder, ("train", "test"))
    return folder


def _clear(out: Path) -> None:
    """Removes what a demo writes, and nothing else that may lie in the folder."""
    for name in ("examples", "state", "clients", "logs", "ready"):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
    for name in ("options.sha256", "report.json", "report.md", "plot.png", "adapter.safetensors"):
        (out / name).unlink(missing_ok=True)


async def _federate(options: DemoOptions, processes: Processes, view: RunView, started: float) -> FinishedRun:
    view.say(f"starting the LLM server, the aggregator and {len(options.example_folders)} clients")
    addresses, server, aggregator = start_services(processes, model=options.model, state=options.out / "state")
    async with metered(addresses) as (through, counted), open_channel(addresses.aggregator, PLAINTEXT) as channel:
        # They wait for both services, and for the run.
        clients = [start_client(processes, _client(options, name), through) for name in options.example_folders]
        await services_serving(processes, server, aggregator)
        model = await get_model(addresses.server)
        operator = Operator(channel=channel, peer=f"the aggregator at {addresses.aggregator}")
        await operator.create(_create_request(options, model))
        view.say(f"created {RUN_NAME}: {options.method.value}, {options.rounds} rounds, {options.clients} clients")
        await clients_serving(processes, clients)
        run = await _watch(options, operator, view)
        return replace(await _collect(options, operator, model, run, started), socket=counted())


def _client(options: DemoOptions, name: str) -> ClientPart:
    return ClientPart(
        name=name,
        run=RUN_NAME,
        examples=options.example_folders[name],
        state=options.out / "clients",
        model=options.model,
        pooled=name == run_options.POOLED_CLIENT,
        wire_encoding=options.wire_encoding.value,
    )


def _create_request(options: DemoOptions, model: split_service_pb2.Model) -> run_service_pb2.CreateRunRequest:
    return run_service_pb2.CreateRunRequest(
        run_id=RUN_ID,
        run=run_pb2.Run(
            display_name=f"demo, {options.method.value}, seed {options.seed}",
            config=run_options.run_config(options, model),
        ),
        request_id=run_options.request_id(options),
    )


async def _watch(options: DemoOptions, operator: Operator, view: RunView) -> run_pb2.Run:
    """Shows the run until it has ended; the run as its last event has it."""
    # A round may be silent for its whole deadline, twice: training, then evaluation.
    silence_s = 2.0 * options.round_timeout_s + 60.0
    async for event in operator.follow(RUN_NAME, silence_s=silence_s):
        view.apply(event)
    return view.run


async def _collect(
    options: DemoOptions, operator: Operator, model: split_service_pb2.Model, run: run_pb2.Run, started: float
) -> FinishedRun:
    if run.state != run_pb2.Run.STATE_SUCCEEDED:
        # Nothing is left to continue.
        (options.out / "options.sha256").unlink(missing_ok=True)
        state = run_pb2.Run.State.Name(run.state).removeprefix("STATE_").lower()
        raise PartFailed(
            f"{RUN_NAME} {state}: {run.failure.message or 'no reason given'}; logs: {options.out / 'logs'}"
        )
    await operator.export(RUN_NAME, options.out / "adapter.safetensors")
    return FinishedRun(
        run=await operator.run(RUN_NAME),
        rounds=await operator.rounds(RUN_NAME),
        clients=await operator.clients(RUN_NAME),
        model=model,
        seconds=time.monotonic() - started,
    )
