"""Who may do what: every cell of the policy's table, over real connections to a real aggregator and LLM server."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from secure_federation import SecureFederation, secure_federation

from fednano.rpc.policy import ANYONE, POLICY
from fednano.security.identity import Role
from fednano.v1 import aggregator_service_pb2, enrollment_service_pb2, run_service_pb2, split_service_pb2

CONTRACT = (aggregator_service_pb2, run_service_pb2, enrollment_service_pb2, split_service_pb2, health_pb2)
FILES = (*CONTRACT, reflection_pb2)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
OWN = [path for path, rule in POLICY.items() if rule.own]
# A client's own requests name this one.
CLIENT_ID = "site-a"
DENIALS = {"UNAUTHENTICATED", "ROLE_DENIED", "NOT_THE_CLIENT"}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureFederation]:
    with secure_federation(tmp_path_factory.mktemp("federation")) as running:
        yield running


def test_every_method_of_every_service_has_a_row() -> None:
    assert set(METHODS) == set(POLICY)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("path", POLICY)
def test_a_certificate_opens_what_its_role_may_do_and_nothing_else(
    federation: SecureFederation, path: str, role: Role
) -> None:
    with federation.certified(service_of(path), role, CLIENT_ID) as channel:
        reason = refusal(channel, path)
    assert (reason not in DENIALS) if role in POLICY[path].roles else (reason == "ROLE_DENIED")


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.VIEWER])
@pytest.mark.parametrize("path", [path for path in POLICY if "SplitService" not in path])
def test_a_bearer_token_opens_what_its_role_may_do_and_nothing_else(
    federation: SecureFederation, path: str, role: Role
) -> None:
    with federation.stranger(federation.token(role)) as channel:
        reason = refusal(channel, path)
    assert (reason not in DENIALS) if role in POLICY[path].roles else (reason == "ROLE_DENIED")


@pytest.mark.parametrize("path", [path for path in POLICY if "SplitService" not in path])
def test_who_proves_nothing_may_only_enrol(federation: SecureFederation, path: str) -> None:
    with federation.stranger() as channel:
        reason = refusal(channel, path)
    assert (reason not in DENIALS) if ANYONE in POLICY[path].roles else (reason == "UNAUTHENTICATED")


@pytest.mark.parametrize("path", OWN)
def test_a_client_acts_for_no_other(federation: SecureFederation, path: str) -> None:
    with federation.certified("aggregator", Role.CLIENT, CLIENT_ID) as channel:
        assert refusal(channel, path, client_id="site-b") == "NOT_THE_CLIENT"


@pytest.mark.parametrize("service", ["aggregator", "server"])
def test_without_a_certificate_no_connection_is_made(federation: SecureFederation, service: str) -> None:
    authority = (federation.authority.folder / "ca.crt").read_bytes()
    with grpc.secure_channel(federation.addresses[service], grpc.ssl_channel_credentials(authority)) as channel:
        assert refusal(channel, "/grpc.health.v1.Health/Check") == "UNAVAILABLE"


def service_of(path: str) -> str:
    return "server" if "SplitService" in path else "aggregator"


def refusal(channel: grpc.Channel, path: str, client_id: str = CLIENT_ID) -> str:
    """The contract's reason why the call was refused, gRPC's code where that was not ours, empty where it was not."""
    method = METHODS[path]
    request = own_request(path, client_id)
    kind = "_".join("stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming))
    call: Any = getattr(channel, kind)(
        path, lambda message: message.SerializeToString(), GetMessageClass(method.output_type).FromString
    )
    argument = iter([request]) if method.client_streaming else request
    try:
        answer = call(argument, timeout=10)
        if method.server_streaming:
            next(iter(answer), None)
            answer.cancel()
    except grpc.RpcError as error:
        return reason_of(error)
    return ""


def own_request(path: str, client_id: str) -> Any:
    """An empty request, but for the field that names the client."""
    request = GetMessageClass(METHODS[path].input_type)()
    own = POLICY[path].own
    holder, _, field = own.rpartition(".")
    if own:
        text = client_id if field == "client_id" else f"runs/absent/clients/{client_id}"
        setattr(getattr(request, holder) if holder else request, field, text)
    return request


def reason_of(error: grpc.RpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            return str(info.reason)
    return str(error.code().name)  # type: ignore[attr-defined]
