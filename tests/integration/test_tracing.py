"""One trace of a run through a real client, LLM server and aggregator, as a real collector receives it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from trace_collector import Collector, collecting
from training_processes import Federation

from fednano.cli.processes import Processes, free_address
from fednano.data.icon_federation import write_icon_federation
from fednano.tracing import ATTRIBUTES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """What a run of one client and one round sent, whose processes have all ended."""
    folder = tmp_path_factory.mktemp("traces")
    write_icon_federation(
        folder / "icons", client_count=1, alpha=1.0, seed=0, train_count=16, val_count=1, test_count=2
    )
    with collecting() as (collector, url), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        with Processes(folder, print) as processes:
            asyncio.run(traced_run(folder, processes))
        yield collector


async def traced_run(folder: Path, processes: Processes) -> None:
    server_address, aggregator_address = free_address(), free_address()
    flags = ["--state", str(folder / "state"), "--listen", aggregator_address]
    aggregator = processes.start("aggregator", "services.aggregator", flags)
    server = processes.start("server", "services.server", ["--model", "nano", "--listen", server_address])
    federation = Federation(
        folder=folder,
        processes=processes,
        server=server,
        aggregator=aggregator,
        server_address=server_address,
        aggregator_address=aggregator_address,
    )
    await federation.create("traced")
    client = federation.start_client("traced")
    await federation.adapter_of("traced")
    assert client.process.wait(30) == 0


def test_a_servers_pass_is_part_of_the_clients_step(collector: Collector) -> None:
    training = ["client: step", "client: local_training", "client: round", "client: run"]
    lines = [collector.line(span) for span in collector.named("forward pass")]
    assert ["server: forward pass", "client: forward", *training] in lines
    lines = [collector.line(span) for span in collector.named("backward pass")]
    assert ["server: backward pass", "client: backward", *training] in lines


def test_an_aggregators_call_is_part_of_the_clients_round(collector: Collector) -> None:
    assert [collector.line(span)[1:] for span in collector.named("UploadUpdate")] == [["client: round", "client: run"]]
    assert {span.attributes["round"] for span in collector.named("round")} >= {"runs/traced/rounds/1"}
    (merge,) = [span for span in collector.named("merge") if span.attributes["round"] == "runs/traced/rounds/1"]
    assert (merge.service, merge.attributes["updates"]) == ("fednano.aggregator", 1)


def test_all_of_a_clients_run_is_one_trace(collector: Collector) -> None:
    (run,) = collector.named("run")
    ours = {span.trace_id for span in collector.spans if span.name != "merge"}
    assert ours == {run.trace_id}
    # Two epochs of four steps each.
    assert len(collector.named("step")) == 8


def test_nothing_is_said_but_what_may_be(collector: Collector) -> None:
    assert {key for span in collector.spans for key in span.attributes} <= ATTRIBUTES
    assert not any(text for span in collector.spans for text in span.texts)
    values = [value for span in collector.spans for value in span.attributes.values() if isinstance(value, str)]
    assert all(value.startswith(("runs/traced", "/fednano.v1.")) or value in ("train", "evaluate") for value in values)
