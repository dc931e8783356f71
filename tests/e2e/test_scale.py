"""`--scale client=5`: each replica is somebody else, and one too many is told so."""

from federation import ROUND_TIMEOUT_S, Federation

RUN = {"FEDNANO_RUN": "five", "FEDNANO_ROUNDS": "1", "FEDNANO_MIN_CLIENTS": "5"}


def test_five_replicas_are_five_clients_and_a_sixth_finds_no_slot(federation: Federation) -> None:
    federation.down()
    federation.environment.update(RUN)
    federation.up(clients=6)
    federation.wait_for_round(1, 2 * ROUND_TIMEOUT_S)
    clients = federation.json("client", "list", "five")["clients"]
    names = sorted(client["name"].rpartition("/")[2] for client in clients)
    assert names == [f"client-{number}" for number in range(1, 6)]
    assert len({client["exampleCount"] for client in clients}) > 1
    assert "all 5 slots of /examples/icons are taken" in federation.logs("client")
