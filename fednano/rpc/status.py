"""Errors as gRPC statuses and back: code, message, ErrorInfo, and RetryInfo or BadRequest where they help."""

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from fednano.errors import (
    DOMAIN,
    FieldInvalid,
    InternalFault,
    NoProgress,
    PeerUnavailable,
    ServerBusy,
    WireError,
    wire_error_classes,
)
from fednano.v1 import error_reason_pb2 as pb

PREFIX = "ERROR_REASON_"
# What a status without our ErrorInfo means: gRPC itself made it, so the peer or the way to it is the matter.
BARE_CODES = {
    grpc.StatusCode.UNAVAILABLE: PeerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: NoProgress,
    grpc.StatusCode.CANCELLED: PeerUnavailable,
}
# gRPC has no one code for a connection that broke under a call: these words of its core tell it.
BROKEN_CODES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
BROKEN_WORDS = (
    "internal error from core",
    "stream removed",
    "rst_stream",
    "goaway",
    "connection reset",
    "connection closed",
    "socket closed",
    "broken pipe",
    "transport closed",
    "endpoint closing",
    "end of tcp stream",
    "endofstream",
    "stream closed",
)


def to_status(error: WireError) -> status_pb2.Status:
    """The status that carries everything the error knows."""
    details = [_pack(error_details_pb2.ErrorInfo(reason=reason_name(type(error)), domain=DOMAIN, metadata=error.facts))]
    if isinstance(error, ServerBusy):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(error.retry_after_s * 1000))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    if isinstance(error, FieldInvalid):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.facts.get("field", ""), description=error.message
        )
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    return status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.message, details=details)


def from_rpc_error(error: grpc.aio.AioRpcError, peer: str) -> WireError:
    """The exception that the peer raised, or PeerUnavailable, NoProgress or InternalFault where gRPC failed by itself.

    ``peer`` is what to call the other end in a message, such as "the LLM server at 10.0.0.5:7001".
    """
    code, words = error.code(), error.details() or ""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    known = _known_error(status) if status is not None else None
    if known is not None:
        return known
    is_broken = code in BROKEN_CODES and any(known in words.lower() for known in BROKEN_WORDS)
    error_class = PeerUnavailable if is_broken else BARE_CODES.get(code, InternalFault)
    message = f"{peer}: {code.name} {words}".strip()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        message += " Is this the address of another service, or of another version?"
    return error_class(message, peer=peer, code=code.name)


def reason_name(error_class: type[WireError]) -> str:
    """ErrorInfo.reason of a class, such as "ROUND_CLOSED"."""
    return pb.ErrorReason.Name(error_class.reason).removeprefix(PREFIX)


def _known_error(status: status_pb2.Status) -> WireError | None:
    classes = {reason_name(error_class): error_class for error_class in wire_error_classes()}
    facts, retry_after_s = None, 1.0
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in classes:
            facts = dict(info.metadata)
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    if facts is None:
        return None
    error_class = classes[info.reason]
    if error_class is ServerBusy:
        return ServerBusy(status.message, retry_after_s=retry_after_s, **facts)
    return error_class(status.message, **facts)


def _pack(
    message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo | error_details_pb2.BadRequest,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
