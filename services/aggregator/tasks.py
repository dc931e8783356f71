"""What a client should do now, derived from the database alone: asking twice gives the same answer."""

import time

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import Connection

from fednano.names import ClientName
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import run_pb2
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER, ArtifactSpec
from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.store import clients, rounds, runs
from services.aggregator.store.participants import OUT, Participation, find_participation
from services.aggregator.store.rounds import RoundHead


def next_task(connection: Connection, artifacts: ArtifactStore, client: ClientName) -> pb.PollTaskResponse | None:
    """The client's task, or None where it has to wait. Raises ClientEvicted."""
    clients.check_not_evicted(connection, client)
    run_state = runs.run_state(connection, client.run)
    if run_state in runs.ENDED:
        return pb.PollTaskResponse(end=pb.EndTask(run_state=run_state))
    newest = rounds.newest_round(connection, client.run)
    part = find_participation(connection, newest.name, client) if newest else None
    if newest is None or part is None:
        return None
    timeout = Duration()
    timeout.FromMilliseconds(max(0, int(1000 * (newest.deadline_s - time.time()))))
    if is_to_train(newest, part):
        adapter = adapter_spec(artifacts, newest.base_sha256)
        return pb.PollTaskResponse(train=pb.TrainTask(round=str(newest.name), adapter=adapter, timeout=timeout))
    if is_to_evaluate(newest, part):
        adapter = adapter_spec(artifacts, newest.merged_sha256)
        return pb.PollTaskResponse(evaluate=pb.EvaluateTask(round=str(newest.name), adapter=adapter, timeout=timeout))
    return None


def is_to_train(newest: RoundHead, part: Participation) -> bool:
    """Whether the round still awaits this participant's update."""
    return newest.state == run_pb2.Round.STATE_TRAINING and part.state == run_pb2.Participant.STATE_SELECTED


def is_to_evaluate(newest: RoundHead, part: Participation) -> bool:
    """Whether the round still awaits this participant's evaluation: those whose update it lacks evaluate nothing."""
    asked = (run_pb2.Participant.STATE_SELECTED, run_pb2.Participant.STATE_UPDATED)
    return newest.state == run_pb2.Round.STATE_EVALUATING and part.state in asked


def directive(connection: Connection, client: ClientName, round_name: str) -> "pb.Directive.ValueType":
    """Whether the client should go on with what it says that it does."""
    is_evicted = clients.client_state(connection, client) == run_pb2.Client.STATE_EVICTED
    if is_evicted or runs.run_state(connection, client.run) in runs.ENDED:
        return pb.DIRECTIVE_LEAVE
    if not round_name:
        return pb.DIRECTIVE_CONTINUE
    newest = rounds.newest_round(connection, client.run)
    if newest is None or str(newest.name) != round_name or newest.state in rounds.OVER:
        return pb.DIRECTIVE_ABANDON_ROUND
    part = find_participation(connection, newest.name, client)
    is_in_vain = part is None or part.state in OUT
    return pb.DIRECTIVE_ABANDON_ROUND if is_in_vain else pb.DIRECTIVE_CONTINUE


def adapter_spec(artifacts: ArtifactStore, sha256: str) -> ArtifactSpec:
    """Announces a global adapter; raises ArtifactCorrupt where its file is missing."""
    size_bytes = artifacts.path(sha256).stat().st_size
    return ArtifactSpec(kind=ARTIFACT_KIND_ADAPTER, size_bytes=size_bytes, sha256=sha256)
