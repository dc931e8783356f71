"""Who may do what: one row for each method of each service, and what is in no row nobody may call.

docs/security.md shows this table; a test holds the two, and all methods that the services have, against each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fednano.security.identity import Role

SMALL_BYTES = 64 << 10
# Maps of metrics, configurations.
LARGE_BYTES = 512 << 10
# A frame: a chunk has at most 2 MiB. gRPC itself takes no message above 4 MiB.
FRAME_BYTES = 3 << 20


# Whoever calls without a certificate and without a token.
ANYONE = "anyone"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One method's row.

    ``own`` is the field that names the client on whose behalf is called: it must be the calling client. ``is_audited``
    are the calls of which the audit log keeps what became of them; of all others it keeps the refused ones.
    """

    roles: frozenset[str]
    own: str = ""
    is_audited: bool = False
    max_bytes: int = SMALL_BYTES


_NAMED: frozenset[str] = frozenset(Role)
_EVERYONE = _NAMED | {ANYONE}
_PEOPLE: frozenset[str] = frozenset({Role.OPERATOR, Role.VIEWER})
_READ = Rule(roles=_PEOPLE)
_OPERATE = Rule(roles=frozenset({Role.OPERATOR}), is_audited=True)
_CLIENT: frozenset[str] = frozenset({Role.CLIENT})

POLICY: Mapping[str, Rule] = MappingProxyType(
    {
        "/fednano.v1.AggregatorService/JoinRun": Rule(roles=_CLIENT, own="client_id"),
        "/fednano.v1.AggregatorService/LeaveRun": Rule(roles=_CLIENT, own="client"),
        "/fednano.v1.AggregatorService/SendHeartbeat": Rule(roles=_CLIENT, own="client"),
        "/fednano.v1.AggregatorService/PollTask": Rule(roles=_CLIENT, own="client"),
        "/fednano.v1.AggregatorService/DownloadAdapter": Rule(roles=_CLIENT),
        "/fednano.v1.AggregatorService/GetUpload": Rule(roles=_CLIENT, own="header.client", max_bytes=LARGE_BYTES),
        "/fednano.v1.AggregatorService/UploadUpdate": Rule(roles=_CLIENT, own="header.client", max_bytes=FRAME_BYTES),
        "/fednano.v1.AggregatorService/ReportMetrics": Rule(roles=_CLIENT, own="client", max_bytes=LARGE_BYTES),
        "/fednano.v1.RunService/CreateRun": Rule(roles=_OPERATE.roles, is_audited=True, max_bytes=LARGE_BYTES),
        "/fednano.v1.RunService/GetRun": _READ,
        "/fednano.v1.RunService/ListRuns": _READ,
        "/fednano.v1.RunService/CancelRun": _OPERATE,
        "/fednano.v1.RunService/PauseRun": _OPERATE,
        "/fednano.v1.RunService/ResumeRun": _OPERATE,
        "/fednano.v1.RunService/GetRound": _READ,
        "/fednano.v1.RunService/ListRounds": _READ,
        "/fednano.v1.RunService/ListClients": _READ,
        "/fednano.v1.RunService/GetClient": _READ,
        "/fednano.v1.RunService/EvictClient": _OPERATE,
        "/fednano.v1.RunService/ListMeasurements": _READ,
        "/fednano.v1.RunService/WatchEvents": _READ,
        "/fednano.v1.RunService/ExportAdapter": _OPERATE,
        "/fednano.v1.EnrollmentService/CreateJoinToken": _OPERATE,
        "/fednano.v1.EnrollmentService/ListJoinTokens": Rule(roles=_OPERATE.roles),
        "/fednano.v1.EnrollmentService/RevokeJoinToken": _OPERATE,
        "/fednano.v1.EnrollmentService/GetAuthority": Rule(roles=_EVERYONE),
        "/fednano.v1.EnrollmentService/Enroll": Rule(roles=_EVERYONE, is_audited=True),
        "/fednano.v1.SplitService/GetModel": Rule(roles=_CLIENT | _PEOPLE),
        "/fednano.v1.SplitService/StreamSteps": Rule(roles=_CLIENT, max_bytes=FRAME_BYTES),
        "/fednano.v1.SplitService/Decode": Rule(roles=_CLIENT, max_bytes=FRAME_BYTES),
        "/grpc.health.v1.Health/Check": Rule(roles=_NAMED),
        "/grpc.health.v1.Health/List": Rule(roles=_NAMED),
        "/grpc.health.v1.Health/Watch": Rule(roles=_NAMED),
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(roles=_CLIENT | _PEOPLE),
    }
)
NOBODY = Rule(roles=frozenset())


def rule_of(method: str) -> Rule:
    """The row of a method such as /fednano.v1.RunService/GetRun."""
    return POLICY.get(method, NOBODY)
