"""python -m fednano.rpc.probe: whether the service that has these settings serves, for a container's health check.

It reads the service's own FEDNANO_* variables and shows the service's own certificate. Exit status: 0 where it serves,
1 with one line on stderr where it does not, 2 for wrong settings.
"""

import sys
from pathlib import Path

import grpc
from cryptography import x509
from grpc_health.v1 import health_pb2

from fednano.config import ServiceSettings, read_settings
from fednano.errors import FednanoError, PeerUnavailable
from fednano.security.certificates import hosts_of
from fednano.security.pem_files import time_fault

# Twice python's start lies within a health check's time limit.
TIMEOUT_S = 5.0
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
ANY_HOST = frozenset({"0.0.0.0", "[::]", "::", ""})  # noqa: S104 - it is compared with, not listened on


def main() -> int:
    try:
        probe(read_settings(ServiceSettings))
    except FednanoError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1 if isinstance(error, PeerUnavailable) else 2
    return 0


def probe(settings: ServiceSettings) -> None:
    """Returns where the service's health is SERVING; raises PeerUnavailable otherwise."""
    address = own_address(settings.listen)
    with _channel(address, settings) as channel:
        check = channel.unary_unary(
            HEALTH_CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            raise PeerUnavailable(f"{address} does not answer: {_why(error, settings)}", peer=address) from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise PeerUnavailable(f"{address} is {status}", peer=address)


def _why(error: grpc.RpcError, settings: ServiceSettings) -> str:
    """gRPC's words, or those that tell more where the service's own certificate is what nobody can take."""
    fault = "" if settings.insecure else time_fault(x509.load_pem_x509_certificate(_read(settings.tls_cert)))
    return f"its certificate in {settings.tls_cert} {fault}" if fault else str(error.details())


def own_address(listen: str) -> str:
    """Where a process on the same machine reaches what listens there."""
    host, _, port = listen.rpartition(":")
    return f"localhost:{port}" if host in ANY_HOST else listen


def _channel(address: str, settings: ServiceSettings) -> grpc.Channel:
    if settings.insecure:
        return grpc.insecure_channel(address)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_read(settings.tls_ca),
        private_key=_read(settings.tls_key),
        certificate_chain=_read(settings.tls_cert),
    )
    # Its own name need not be one of this machine's: what is asked is whether the service itself answers.
    hosts = hosts_of(x509.load_pem_x509_certificate(_read(settings.tls_cert)))
    options = [("grpc.ssl_target_name_override", hosts[0])] if hosts else []
    return grpc.secure_channel(address, credentials, options=options)


def _read(path: Path | None) -> bytes:
    if path is None or not path.is_file():
        raise PeerUnavailable(f"no certificate file at {path}", peer="")
    return path.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
