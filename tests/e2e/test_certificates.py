"""Who is refused: no certificate, another client's, a revoked one. Each beside somebody who is let in."""

import pytest
from federation import Answer, Federation

ADDRESSES = ("server:7001", "aggregator:7000")
# Asks for health with the CA's certificate alone, or in plaintext, and says how that ended.
BARE = """
import sys, grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
address, how = sys.argv[1:]
credentials = grpc.ssl_channel_credentials(open("/identities/client-3/ca.crt", "rb").read())
channel = grpc.secure_channel(address, credentials) if how == "tls" else grpc.insecure_channel(address)
try:
    health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    print("let in")
except grpc.RpcError as error:
    print(error.code().name)
"""


def in_a_clients_place(federation: Federation, *command: str, environment: dict[str, str] | None = None) -> Answer:
    """A command where clients run, with their volumes and their network."""
    variables = [argument for name, value in (environment or {}).items() for argument in ("--env", f"{name}={value}")]
    return federation.compose(
        "run", "--rm", "--no-deps", "-T", *variables, "--entrypoint", "python", "client", *command
    )


def identity(slot: str) -> dict[str, str]:
    files = {"CA": "ca.crt", "CERT": "tls.crt", "KEY": "tls.key", "CRL": "ca.crl"}
    return {f"FEDNANO_TLS_{name}": f"/identities/{slot}/{file}" for name, file in files.items()}


def knock(federation: Federation, slot: str, address: str) -> Answer:
    """Whether the address answers who shows that slot's certificate."""
    return in_a_clients_place(federation, "-m", "fednano.rpc.probe", "--listen", address, environment=identity(slot))


def join(federation: Federation, client_id: str, slot: str) -> Answer:
    """A client that calls itself so, with that slot's certificate."""
    environment = {
        **identity(slot),
        "FEDNANO_EXAMPLES": "/examples/icons/client-3",
        "FEDNANO_RUN": "runs/demo",
        "FEDNANO_AGGREGATOR_WAIT_S": "20",
        "FEDNANO_SERVER_WAIT_S": "20",
    }
    return in_a_clients_place(federation, "-m", "services.client", "--client-id", client_id, environment=environment)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("how", ["tls", "plaintext"])
def test_a_client_without_a_certificate_is_refused(federation: Federation, address: str, how: str) -> None:
    answer = in_a_clients_place(federation, "-c", BARE, address, how)
    assert answer.text.splitlines()[-1] == "UNAVAILABLE", answer.text


def test_a_client_with_its_own_certificate_is_let_in(federation: Federation) -> None:
    answer = join(federation, "client-3", "client-3")
    assert answer.code == 0, answer.text
    # The run is over: it is told so, and ends well.
    assert "run_ended" in answer.text


def test_a_client_with_another_ones_certificate_is_refused(federation: Federation) -> None:
    answer = join(federation, "client-2", "client-3")
    assert answer.code == 1, answer.text
    (said,) = [line for line in answer.text.splitlines() if line.startswith("error:")]
    assert "client-3" in said
    assert "client-2" in said


def test_a_revoked_certificate_is_refused_at_once(federation: Federation) -> None:
    for address in ADDRESSES:
        assert knock(federation, "client-4", address).code == 0
    federation.must("run", "--rm", "--no-deps", "-T", "certificates", "revoke", "client", "client-4")
    for address in ADDRESSES:
        refused = knock(federation, "client-4", address)
        assert refused.code == 1, refused.text
        assert knock(federation, "client-5", address).code == 0
    answer = join(federation, "client-4", "client-4")
    assert answer.code != 0
    assert "revoked" in answer.text


def test_a_revoked_identity_stays_out_until_it_is_renewed(federation: Federation) -> None:
    federation.must("run", "--rm", "--no-deps", "-T", "certificates")
    assert knock(federation, "client-4", ADDRESSES[0]).code == 1
    federation.must("run", "--rm", "--no-deps", "-T", "certificates", "renew", "client", "client-4")
    for address in ADDRESSES:
        assert knock(federation, "client-4", address).code == 0
