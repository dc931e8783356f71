"""Flower's legacy gRPC API: its server in one process, a client in each other one."""

import argparse
from pathlib import Path

from flwr.client import NumPyClient, start_client
from flwr.common import FitRes, Parameters, Scalar, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerConfig, start_server
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg

from benchmarks.round_marks import send_mark
from benchmarks.round_payload import Float32Array, initial_adapter, make_new, merge, update_of


class FisherMerge(FedAvg):
    """FedAvg's rounds, with the race's merge in the place of its mean. No evaluation."""

    def aggregate_fit(
        self,
        server_round: int,  # noqa: ARG002 - Flower's signature
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],  # noqa: ARG002
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        merged = merge([parameters_to_ndarrays(result.parameters) for _, result in results])
        return ndarrays_to_parameters(merged), {}


class RaceClient(NumPyClient):
    def __init__(self, client: int, marks: Path) -> None:
        self._update, self._marks = update_of(client), marks

    def fit(
        self,
        parameters: list[Float32Array],  # noqa: ARG002
        config: dict[str, Scalar],
    ) -> tuple[list[Float32Array], int, dict[str, Scalar]]:
        round_number = int(config["round"])
        send_mark(self._marks, round_number)
        make_new(self._update, round_number)
        return self._update, 100, {"loss": 1.0}


def _serve(address: str, clients: int, rounds: int, tls: Path | None) -> None:
    strategy = FisherMerge(
        fraction_evaluate=0.0,
        min_fit_clients=clients,
        min_available_clients=clients,
        on_fit_config_fn=lambda round_number: {"round": round_number},
        initial_parameters=ndarrays_to_parameters(initial_adapter()),
    )
    pems = None if tls is None else tuple((tls / name).read_bytes() for name in ("ca.pem", "end.pem", "end.key"))
    start_server(server_address=address, config=ServerConfig(num_rounds=rounds), strategy=strategy, certificates=pems)


def _work(address: str, client: int, marks: Path, tls: Path | None) -> None:
    start_client(
        server_address=address,
        client=RaceClient(client, marks).to_client(),
        insecure=tls is None,
        root_certificates=None if tls is None else (tls / "ca.pem").read_bytes(),
        max_wait_time=60.0,
    )


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    for name in ("--clients", "--rounds", "--client"):
        parser.add_argument(name, type=int)
    for name in ("--tls", "--marks"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    if given.client is None:
        _serve(given.address, given.clients, given.rounds, given.tls)
    else:
        _work(given.address, given.client, given.marks, given.tls)


if __name__ == "__main__":
    _main()
