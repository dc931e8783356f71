"""`docker compose up` to the end of its run: accuracy rises, nobody reaches more than they need, logs keep silent."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from federation import Answer, Federation
from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "monitoring" / "federation.json"
# Tries to connect to each address, which is host:port, and says which it could.
CONNECT = """
import json, socket, sys
reached = []
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
        reached.append(address)
    except OSError:
        pass
print(json.dumps(reached))
"""
SCRAPE = (
    "import sys, urllib.request as u; print(u.urlopen(f'http://{sys.argv[1]}/metrics', timeout=10).read().decode())"
)
QUESTIONS = """
import json, pathlib
texts = set()
for path in pathlib.Path("/examples/icons").glob("*/problems.json"):
    texts |= {problem["question"] for problem in json.loads(path.read_text()).values()}
print(json.dumps(sorted(texts)))
"""
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}
# Names that a field of a log line must not have, and what a tensor looks like.
FORBIDDEN_FIELDS = {
    "answer",
    "answers",
    "choices",
    "label",
    "labels",
    "logits",
    "prompt",
    "question",
    "text",
    "token",
    "tokens",
}
TENSOR = re.compile(r"tensor\(|array\(|(?:-?\d+\.\d+[,\s]+){4}")


def output_of(answer: Answer) -> str:
    assert answer.code == 0, answer.text
    return answer.text


def reached(federation: Federation, service: str, *addresses: str) -> list[str]:
    """Of the addresses, those that a process in the service's container can connect to."""
    found: list[str] = json.loads(output_of(federation.python_in(service, CONNECT, *addresses)))
    return found


def address_in(federation: Federation, service: str, network: str) -> str:
    networks = federation.container(service).attrs["NetworkSettings"]["Networks"]
    return str(networks[f"{federation.project}_{network}"]["IPAddress"])


def test_accuracy_rises_to_the_end_of_the_run(federation: Federation) -> None:
    assert "run succeeded" in federation.first_watch
    accuracies = federation.accuracies()
    assert len(accuracies) == 3
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] > accuracies[0] + 0.25


def test_each_client_took_an_identity_and_examples_of_its_own(federation: Federation) -> None:
    clients = federation.json("client", "list", "demo")["clients"]
    assert sorted(client["name"].rpartition("/")[2] for client in clients) == ["client-1", "client-2"]
    assert len({client["exampleCount"] for client in clients}) == 2


def test_what_the_operator_asked_for_is_in_an_unbroken_audit_log(federation: Federation) -> None:
    log = "/state/audit.jsonl"
    verified = federation.run_in("aggregator", "fednano", "audit", "verify", log)
    assert verified.code == 0, verified.text
    assert "CreateRun" in output_of(federation.run_in("aggregator", "cat", log))


def test_every_container_is_confined(federation: Federation) -> None:
    for container in federation.containers():
        host = container.attrs["HostConfig"]
        assert host["ReadonlyRootfs"], container.name
        assert host["CapDrop"] == ["ALL"], container.name
        assert "no-new-privileges:true" in host["SecurityOpt"], container.name
        assert host["Memory"] > 0, container.name
        assert not host["PortBindings"], container.name
        assert host["Init"], container.name


def test_services_are_healthy_and_were_never_restarted(federation: Federation) -> None:
    for service in ("server", "aggregator"):
        federation.wait_until(service, healthy=True)
        assert federation.container(service).attrs["RestartCount"] == 0


def test_a_client_reaches_the_server_and_the_aggregator_and_nothing_else(federation: Federation) -> None:
    """From a container in the clients' place, for the clients have ended with their run."""
    metrics = [f"{address_in(federation, service, 'edge')}:9100" for service in ("server", "aggregator")]
    outside = ["192.0.2.1:80", "server-metrics:9100", "aggregator-metrics:9100"]
    asked = ["server:7001", "aggregator:7000", *metrics, *outside]
    answer = federation.compose(
        "run", "--rm", "--no-deps", "-T", "--entrypoint", "python", "client", "-c", CONNECT, *asked
    )
    assert json.loads(output_of(answer).splitlines()[-1]) == ["server:7001", "aggregator:7000"]


def test_nothing_reaches_the_internet(federation: Federation) -> None:
    for service in ("server", "aggregator"):
        networks = federation.container(service).attrs["NetworkSettings"]["Networks"]
        for name in networks:
            assert federation.engine.networks.get(name).attrs["Internal"], name


def scrape(federation: Federation, address: str) -> dict[str, set[str]]:
    """As Prometheus does it: from its network, parsed by its own client library. Names of labels by name of series.

    A family that has no sample yet is there with no labels.
    """
    text = output_of(federation.python_in("aggregator", SCRAPE, address))
    series: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for suffix in SUFFIXES[family.type]:
            series[family.name + suffix] = set()
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series


def test_prometheus_finds_what_the_dashboard_asks_for(federation: Federation) -> None:
    found = [scrape(federation, address) for address in ("server-metrics:9100", "aggregator-metrics:9100")]
    # Prometheus adds which service it was.
    series = {name: labels | {"service"} for each in found for name, labels in each.items()}
    labelled = 0
    panels = json.loads(DASHBOARD.read_text())["panels"]
    for query in (target["expr"] for panel in panels for target in panel.get("targets", ())):
        names = set(re.findall(r"\b(?:fednano|process)_\w+", query))
        assert names <= set(series), query
        asked = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")}
        for name in names:
            if asked and series[name] != {"service"}:
                labelled += 1
                assert asked <= series[name], query
    assert labelled > 5


def test_no_log_has_a_question_a_tensor_a_token_or_a_key(federation: Federation) -> None:
    logs = federation.logs()
    questions = json.loads(
        output_of(
            federation.compose("run", "--rm", "--no-deps", "-T", "--entrypoint", "python", "examples", "-c", QUESTIONS)
        ).splitlines()[-1]
    )
    assert len(questions) > 5
    assert not [text for text in questions if text in logs]
    assert "PRIVATE KEY" not in logs
    assert not TENSOR.search(logs)
    lines = [json.loads(line) for line in logs.splitlines() if line.startswith("{")]
    assert len(lines) > 20
    for line in lines:
        assert not fields_of(line) & FORBIDDEN_FIELDS, line


def fields_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*(fields_of(each) for each in value.values()))
    if isinstance(value, list):
        # A list in a log line is one of names.
        assert all(isinstance(each, str) for each in value), value
    return set()


@pytest.mark.parametrize("service", ["server", "aggregator", "client"])
def test_the_processes_are_nobodys(federation: Federation, service: str) -> None:
    assert federation.container(service).attrs["Config"]["User"] == "10001:10001"
