"""The report is computed from fixed rounds; every figure in it can be checked by hand."""

import json
from pathlib import Path

import pytest

from fednano.cli.options import DemoMethod, DemoOptions, request_id, run_config
from fednano.cli.report import FinishedRun, SocketLedger, accuracy_of, make_report, to_json, to_markdown
from fednano.cli.socket_meter import SocketBytes
from fednano.errors import PartFailed
from fednano.v1 import run_pb2, split_service_pb2

MODEL = split_service_pb2.Model(name="nano", digest="d" * 64, hidden_size=128)


def options(**changes: object) -> DemoOptions:
    return DemoOptions(out=Path("runs/demo"), clients=2, rounds=1, **changes)  # type: ignore[arg-type]


def participant(client: str, **metrics: float) -> run_pb2.Participant:
    named = {key.replace("_", "/"): value for key, value in metrics.items()}
    return run_pb2.Participant(client=f"runs/demo/clients/{client}", metrics=named)


def finished() -> FinishedRun:
    rounds = [
        run_pb2.Round(
            number=0,
            participants=[participant("client-1", test_accuracy=0.2), participant("client-2", test_accuracy=0.4)],
            metrics={"bytes/activations": 10.0},
            merged_adapter_sha256="0" * 64,
        ),
        run_pb2.Round(
            number=1,
            participants=[
                participant("client-1", test_accuracy=0.9, train_steps=10, bytes_activations=60, bytes_gradients=30),
                participant("client-2", test_accuracy=0.7, train_steps=20, bytes_activations=40, bytes_gradients=20),
            ],
            metrics={"bytes/activations": 100.0, "bytes/gradients": 50.0, "bytes/adapters": 7.0, "bytes/fisher": 3.0},
            merged_adapter_sha256="1" * 64,
        ),
    ]
    clients = [
        run_pb2.Client(name=f"runs/demo/clients/client-{n}", parameter_counts={"edge": 900, "adapter": 80})
        for n in (1, 2)
    ]
    run = run_pb2.Run(config=run_config(options(seed=3), MODEL))
    run.config.fisher.floor = 0.25
    socket = SocketLedger(server=SocketBytes(up=4, down=3), aggregator=SocketBytes(up=2, down=1))
    return FinishedRun(run=run, rounds=rounds, clients=clients, model=MODEL, seconds=12.34, socket=socket)


def test_the_report_has_the_figures_of_the_rounds() -> None:
    report = json.loads(to_json(make_report(finished())))
    assert report["accuracy"]["before"] == pytest.approx(0.3)
    assert report["accuracy"]["after"] == pytest.approx(0.8)
    assert report["accuracy"]["per_client"]["client-2"] == {"before": 0.4, "after": 0.7}
    assert report["bytes"] == {"adapters": 7, "fisher": 3, "gram": 0, "activations": 110, "gradients": 50}
    assert report["ledger"] == {
        "steps": 30,
        "train_tensor_bytes_per_step": 5.0,
        "socket": {"server": {"up": 4, "down": 3}, "aggregator": {"up": 2, "down": 1}},
    }
    assert report["parameters"] == {"edge": 900, "adapter": 80}
    assert report["fisher"] == {
        "normalization": "l2", "floor": 0.25, "max_examples": 0, "literal": False, "at": "end", "kind": "empirical",
        "power": 1.0, "max_share": 0.0, "moving_average": 0.0,
    }  # fmt: skip
    plain = ("rounds", "clients", "method", "seed", "seconds", "learning_rate", "adapter_sha256")
    assert [report[key] for key in plain] == [1, 2, "fednano", 3, 12.3, 8e-3, "1" * 64]


def test_the_markdown_names_each_client_and_their_mean() -> None:
    text = to_markdown(make_report(finished()))
    assert "| client-1 | 20.0% | 90.0% | +70.0 points |" in text
    assert "| mean over clients | 30.0% | 80.0% | +50.0 points |" in text


def test_a_client_without_a_final_evaluation_is_no_report() -> None:
    rounds = finished().rounds
    del rounds[1].participants[1].metrics["test/accuracy"]
    with pytest.raises(PartFailed, match="client-2"):
        accuracy_of(rounds)


def test_the_request_id_follows_the_options_that_decide_the_result() -> None:
    again = DemoOptions(out=Path("elsewhere"), clients=2, rounds=1, fresh=True)
    assert request_id(options()) == request_id(again)
    assert request_id(options()) != request_id(options(method=DemoMethod.FEDAVG))
    assert request_id(options()) != request_id(options(seed=1))


def test_one_client_with_the_pooled_examples_reports_each_original_client() -> None:
    metrics = {"test/accuracy": 0.5, "test/accuracy/client-1": 0.4, "test/accuracy/client-2": 0.6}
    rounds = [
        run_pb2.Round(number=n, participants=[run_pb2.Participant(client="runs/demo/clients/pooled", metrics=metrics)])
        for n in (0, 1)
    ]
    found = accuracy_of(rounds)
    assert {name: one.after for name, one in found.per_client.items()} == {"client-1": 0.4, "client-2": 0.6}
    assert found.after == pytest.approx(0.5)


@pytest.mark.parametrize("method", list(DemoMethod))
def test_every_method_of_the_demo_makes_a_run_for_its_processes(method: DemoMethod) -> None:
    asked = options(method=method)
    config = run_config(asked, MODEL)
    assert run_pb2.Method.Name(config.method) == f"METHOD_{method.name}"
    assert config.clients_per_round == config.min_updates == len(asked.example_folders)
    assert (list(asked.example_folders) == ["pooled"]) == (method is DemoMethod.CENTRALIZED)
    assert (config.train.proximal_mu > 0) == (method is DemoMethod.FEDPROX)


def test_eq_1_to_the_letter_is_called_so() -> None:
    done = finished()
    done.run.config.fisher.normalization = run_pb2.FisherConfig.NORMALIZATION_NONE
    done.run.config.fisher.floor, done.run.config.fisher.max_share = 0.0, 1.0
    assert "Eq. 1 to the letter" in to_markdown(make_report(done))
    assert "Eq. 1 to the letter" not in to_markdown(make_report(finished()))
