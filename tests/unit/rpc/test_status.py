"""What a status that none of our services made is taken for."""

import grpc
import grpc.aio
import pytest

from fednano.errors import InternalFault, NoProgress, PeerUnavailable, WireError
from fednano.rpc.status import from_rpc_error

NONE = grpc.aio.Metadata()


@pytest.mark.parametrize(
    ("code", "words", "error_class"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", PeerUnavailable),
        (grpc.StatusCode.INTERNAL, "Internal error from Core", PeerUnavailable),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", PeerUnavailable),
        (grpc.StatusCode.UNKNOWN, "Stream removed", PeerUnavailable),
        (grpc.StatusCode.UNKNOWN, "recvmsg:Connection reset by peer", PeerUnavailable),
        (grpc.StatusCode.CANCELLED, "RPC cancelled", PeerUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", NoProgress),
        (grpc.StatusCode.INTERNAL, "Exception deserializing response!", InternalFault),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", InternalFault),
    ],
)
def test_a_bare_status_is_told_by_code_and_words(
    code: grpc.StatusCode, words: str, error_class: type[WireError]
) -> None:
    error = from_rpc_error(grpc.aio.AioRpcError(code, NONE, NONE, details=words), "the aggregator at h:1")
    assert type(error) is error_class
    assert error.facts == {"peer": "the aggregator at h:1", "code": code.name}
    assert words in error.message


def test_a_call_that_the_peer_does_not_have_hints_at_the_address() -> None:
    bare = grpc.aio.AioRpcError(grpc.StatusCode.UNIMPLEMENTED, NONE, NONE, details="Method not found!")
    message = from_rpc_error(bare, "the aggregator at h:1").message
    assert message.startswith("the aggregator at h:1: UNIMPLEMENTED Method not found! Is this the address of another")
