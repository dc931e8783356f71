"""Every way FedNano says no: one exception class for each reason of the contract, and a few that stay on this machine.

An error carries a message for people and facts for programs. The message names the field or the peer and the next thing
to try; the facts travel as ``google.rpc.ErrorInfo.metadata``. ``fednano.rpc.status`` turns a class into a gRPC status
and back; the contract test checks that classes, reasons and codes cover each other.
"""

from typing import ClassVar

from fednano.v1 import error_reason_pb2 as pb

DOMAIN = "fednano"


class FednanoError(Exception):
    """The base of all errors that users of this project are meant to see."""

    def __init__(self, message: str, **facts: str) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts


class WireError(FednanoError):
    """An error that can cross the wire: it has one reason, and the reason has one gRPC status code."""

    reason: ClassVar["pb.ErrorReason.ValueType"]
    code: ClassVar[str]
    # Whether the same call may succeed later, unchanged.
    retryable: ClassVar[bool] = False


class ResourceNotFound(WireError):
    reason, code = pb.ERROR_REASON_RESOURCE_NOT_FOUND, "NOT_FOUND"


class FieldInvalid(WireError):
    """Facts: ``field``, the path of the wrong field in the request."""

    reason, code = pb.ERROR_REASON_FIELD_INVALID, "INVALID_ARGUMENT"


class StreamMalformed(WireError):
    """Frames out of order, or bytes that fit no announced spec."""

    reason, code = pb.ERROR_REASON_STREAM_MALFORMED, "INVALID_ARGUMENT"


class DigestMismatch(WireError):
    reason, code = pb.ERROR_REASON_DIGEST_MISMATCH, "INVALID_ARGUMENT"


class ModelDigestMismatch(WireError):
    """The edge half and the language half were not cut from the same model."""

    reason, code = pb.ERROR_REASON_MODEL_DIGEST_MISMATCH, "FAILED_PRECONDITION"


class RoundClosed(WireError):
    reason, code = pb.ERROR_REASON_ROUND_CLOSED, "FAILED_PRECONDITION"


class ClientNotSelected(WireError):
    reason, code = pb.ERROR_REASON_CLIENT_NOT_SELECTED, "FAILED_PRECONDITION"


class RunEnded(WireError):
    reason, code = pb.ERROR_REASON_RUN_ENDED, "FAILED_PRECONDITION"


class ServerBusy(WireError):
    """A queue is full. ``retry_after_s`` travels as google.rpc.RetryInfo."""

    reason, code, retryable = pb.ERROR_REASON_SERVER_BUSY, "RESOURCE_EXHAUSTED", True

    def __init__(self, message: str, *, retry_after_s: float = 1.0, **facts: str) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s


class TooManyPendingSteps(WireError):
    reason, code = pb.ERROR_REASON_TOO_MANY_PENDING_STEPS, "RESOURCE_EXHAUSTED"


class TooFewUpdates(WireError):
    reason, code = pb.ERROR_REASON_TOO_FEW_UPDATES, "FAILED_PRECONDITION"


class TooFewClients(WireError):
    reason, code = pb.ERROR_REASON_TOO_FEW_CLIENTS, "FAILED_PRECONDITION"


class UpdateInvalid(WireError):
    """An update that must not be merged: a value that is not finite, a wrong name or shape, negative Fisher."""

    reason, code = pb.ERROR_REASON_UPDATE_INVALID, "INVALID_ARGUMENT"


class AlreadyExists(WireError):
    """Other bytes under a key that is taken."""

    reason, code = pb.ERROR_REASON_ALREADY_EXISTS, "ALREADY_EXISTS"


class StepUnknown(WireError):
    reason, code = pb.ERROR_REASON_STEP_UNKNOWN, "FAILED_PRECONDITION"


class ArtifactCorrupt(WireError):
    reason, code = pb.ERROR_REASON_ARTIFACT_CORRUPT, "DATA_LOSS"


class Unsupported(WireError):
    reason, code = pb.ERROR_REASON_UNSUPPORTED, "UNIMPLEMENTED"


class PeerUnavailable(WireError):
    """The peer cannot be reached, or says that it is shutting down."""

    reason, code, retryable = pb.ERROR_REASON_PEER_UNAVAILABLE, "UNAVAILABLE", True


class NoProgress(WireError):
    """A wait reached its bound without any progress."""

    reason, code, retryable = pb.ERROR_REASON_NO_PROGRESS, "DEADLINE_EXCEEDED", True


class InternalFault(WireError):
    """A fault of ours. The log of the service that raised it has the trace."""

    reason, code = pb.ERROR_REASON_INTERNAL, "INTERNAL"


class ClientEvicted(WireError):
    reason, code = pb.ERROR_REASON_CLIENT_EVICTED, "PERMISSION_DENIED"


class StorageFull(WireError):
    """No space left where the service keeps its state; nothing was lost, and it may be tried again."""

    reason, code, retryable = pb.ERROR_REASON_STORAGE_FULL, "RESOURCE_EXHAUSTED", True


class StoreUnavailable(WireError):
    """The service cannot reach its database or its artifacts now."""

    reason, code, retryable = pb.ERROR_REASON_STORE_UNAVAILABLE, "UNAVAILABLE", True


class Unauthenticated(WireError):
    """Nobody knows who calls. Facts: ``fault``, such as "expired"."""

    reason, code = pb.ERROR_REASON_UNAUTHENTICATED, "UNAUTHENTICATED"


class RoleDenied(WireError):
    reason, code = pb.ERROR_REASON_ROLE_DENIED, "PERMISSION_DENIED"


class NotTheClient(WireError):
    """A client named another one than its certificate does."""

    reason, code = pb.ERROR_REASON_NOT_THE_CLIENT, "PERMISSION_DENIED"


class JoinTokenRefused(WireError):
    reason, code = pb.ERROR_REASON_JOIN_TOKEN_REFUSED, "PERMISSION_DENIED"


class MessageTooLarge(WireError):
    reason, code = pb.ERROR_REASON_MESSAGE_TOO_LARGE, "RESOURCE_EXHAUSTED"


class LocalError(FednanoError):
    """An error that never crosses the wire: what is wrong lies on this machine."""


class SettingsInvalid(LocalError):
    """A setting is missing or wrong; the message names it as it is written on the command line."""


class PeerUntrusted(LocalError):
    """No connection with the peer, for a reason of TLS that was found by looking. Facts: ``peer``, ``fault``."""


class ModelInvalid(LocalError):
    """A model folder that is incomplete, broken or of an unknown family."""


class ExamplesInvalid(LocalError):
    """A file of examples that cannot be used; the message names file, example and field."""


class StoreRefused(LocalError):
    """A database that must not be used: damaged, in use by another aggregator, or written by a newer version."""


class AuditBroken(LocalError):
    """An audit log whose lines do not follow from each other. Facts: ``line``, the first one that does not."""


class DeviceMemoryFull(LocalError):
    """The device that the edge half computes on has no memory for a single example. Facts: ``what``."""


class PartFailed(LocalError):
    """A process of a local federation ended when it should not have."""


def wire_error_classes() -> list[type[WireError]]:
    """All classes that can cross the wire, in the order of their reasons."""
    return sorted(WireError.__subclasses__(), key=lambda error: error.reason)
