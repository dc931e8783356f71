"""The demo: a whole federation on this machine, from its data to its report.

The way: data -> server, aggregator and clients as processes -> a run over RPC -> its events -> report, plot, adapter.
"""

import asyncio
import shutil
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path

from fednano.cli import options as run_options
from fednano.cli.operator import Operator
from fednano.cli.options import RUN_ID, RUN_NAME, DemoOptions
from fednano.cli.plot import write_plot
from fednano.cli.processes import Part, Processes, free_address
from fednano.cli.report import FinishedRun, Report, make_report, to_json, to_markdown
from fednano.cli.view import RunView
from fednano.config import Security
from fednano.data.icon_federation import write_icon_federation
from fednano.errors import PartFailed
from fednano.rpc.channels import open_channel, wait_until_serving
from fednano.v1 import run_pb2, run_service_pb2, split_service_pb2, split_service_pb2_grpc

# Processes that import torch start slowly, and all at once on few cores more so.
START_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 10.0
# A round may be silent for its whole deadline, twice: training, then evaluation.
SILENCE_S = 2.0 * run_options.ROUND_TIMEOUT_S + 60.0
PLAINTEXT = Security(insecure=True)
SPLIT_SERVICE = "fednano.v1.SplitService"
RUN_SERVICE = "fednano.v1.RunService"
OVERALL = ""
MODEL = "nano"


def run_demo(options: DemoOptions, view: RunView) -> Report:
    """Runs the demo and writes its files to ``options.out``; no process of it outlives this call.

    Raises PartFailed when a part ends that should not have, or the run does not succeed.
    """
    started = time.monotonic()
    prepare(options, view)
    with Processes(options.out, view.say) as processes, view:
        finished = asyncio.run(_run(options, processes, view, started))
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
    view.say(f"writing the examples of {options.clients} clients to {out / 'examples'}")
    write_icon_federation(
        out / "examples",
        client_count=options.clients,
        alpha=options.alpha,
        seed=options.seed,
        train_count=options.train_examples,
        val_count=options.val_examples,
        test_count=options.test_examples,
    )
    mark.write_text(options.fingerprint)


def _clear(out: Path) -> None:
    """Removes what a demo writes, and nothing else that may lie in the folder."""
    for name in ("examples", "state", "clients", "logs", "ready"):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
    for name in ("options.sha256", "report.json", "report.md", "plot.png", "adapter.safetensors"):
        (out / name).unlink(missing_ok=True)


async def _run(options: DemoOptions, processes: Processes, view: RunView, started: float) -> FinishedRun:
    """The demo's work beside the supervision of its parts; whichever ends first ends the other."""
    supervision = asyncio.create_task(processes.supervise())
    work = asyncio.create_task(_federate(options, processes, view, started))
    try:
        await asyncio.wait({supervision, work}, return_when=asyncio.FIRST_COMPLETED)
        # A part that has just died is why a call failed: its failure says more.
        processes.check()
        if supervision.done():
            supervision.result()
        return await work
    finally:
        for task in (supervision, work):
            task.cancel()
        await asyncio.gather(supervision, work, return_exceptions=True)


async def _federate(options: DemoOptions, processes: Processes, view: RunView, started: float) -> FinishedRun:
    view.say(f"starting the LLM server, the aggregator and {len(options.example_folders)} clients")
    server_address, aggregator_address = free_address(), free_address()
    flags = ["--model", MODEL, "--listen", server_address]
    server = processes.start("server", "services.server", flags)
    flags = ["--state", str(options.out / "state"), "--listen", aggregator_address]
    aggregator = processes.start("aggregator", "services.aggregator", flags, survives_kill=True)
    # They wait for both peers, and for the run.
    clients = [
        _start_client(options, processes, name, server_address, aggregator_address) for name in options.example_folders
    ]
    await _all(_serving(processes, server, SPLIT_SERVICE), _serving(processes, aggregator, RUN_SERVICE))
    model = await get_model(server_address)
    async with open_channel(aggregator_address, PLAINTEXT) as channel:
        operator = Operator(channel=channel, peer=f"the aggregator at {aggregator_address}")
        await operator.create(_create_request(options, model))
        view.say(f"created {RUN_NAME}: {options.method.value}, {options.rounds} rounds, {options.clients} clients")
        await _all(*(_serving(processes, client, OVERALL) for client in clients))
        return await _collect(options, operator, model, await _watch(operator, view), started)


def _start_client(
    options: DemoOptions, processes: Processes, name: str, server_address: str, aggregator_address: str
) -> Part:
    flags = ["--client-id", name, "--run", RUN_NAME, "--examples", str(options.example_folders[name])]
    if name == run_options.POOLED_CLIENT:
        flags.append("--pooled")
    flags += ["--model", MODEL, "--server", server_address, "--aggregator", aggregator_address]
    flags += ["--state", str(options.out / "clients")]
    return processes.start(name, "services.client", [*flags, "--listen", "127.0.0.1:0"], may_end=True)


async def _serving(processes: Processes, part: Part, service: str) -> str:
    """The part's address, once its health says that it serves; a client that is done already counts as well."""
    address = await processes.ready(part, START_TIMEOUT_S)
    if part.process.poll() == 0:
        return address
    async with open_channel(address, PLAINTEXT) as channel:
        await wait_until_serving(channel, service, part.name, START_TIMEOUT_S)
    return address


async def _all(*waits: Coroutine[None, None, str]) -> Sequence[str]:
    """All results; the first failure cancels the other waits."""
    async with asyncio.timeout(START_TIMEOUT_S * 2):
        return await asyncio.gather(*waits)


async def get_model(server_address: str) -> split_service_pb2.Model:
    """What the LLM server says of its model."""
    async with open_channel(server_address, PLAINTEXT) as channel:
        stub: split_service_pb2_grpc.SplitServiceAsyncStub = split_service_pb2_grpc.SplitServiceStub(channel)
        return (await stub.GetModel(split_service_pb2.GetModelRequest(), timeout=CALL_TIMEOUT_S)).model


def _create_request(options: DemoOptions, model: split_service_pb2.Model) -> run_service_pb2.CreateRunRequest:
    return run_service_pb2.CreateRunRequest(
        run_id=RUN_ID,
        run=run_pb2.Run(
            display_name=f"demo, {options.method.value}, seed {options.seed}",
            config=run_options.run_config(options, model),
        ),
        request_id=run_options.request_id(options),
    )


async def _watch(operator: Operator, view: RunView) -> run_pb2.Run:
    """Shows the run until it has ended; the run as its last event has it."""
    async for event in operator.follow(RUN_NAME, silence_s=SILENCE_S):
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
