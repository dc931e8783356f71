"""What a client should do now, derived from the database alone: asking twice gives the same answer."""

import time

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import Connection

from fednano.names import ClientName, RoundName
from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import run_pb2
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER, ArtifactSpec
from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.store import rounds, runs
from services.aggregator.store.participants import find_participation


def next_task(connection: Connection, artifacts: ArtifactStore, client: ClientName) -> pb.PollTaskResponse | None:
    """The client's task, or None where it has to wait."""
    run = runs.load_run(connection, client.run)
    if run.state in runs.ENDED:
        return pb.PollTaskResponse(end=pb.EndTask(run_state=run.state))
    newest = rounds.newest_round(connection, client.run)
    if newest is None:
        return None
    name = RoundName.parse(newest.name)
    part = find_participation(connection, name, client)
    if part is None:
        return None
    timeout = Duration()
    timeout.FromMilliseconds(max(0, int(1000 * (rounds.round_deadline_s(connection, name) - time.time()))))
    if newest.state == run_pb2.Round.STATE_TRAINING and not part.is_updated:
        adapter = adapter_spec(artifacts, newest.base_adapter_sha256)
        return pb.PollTaskResponse(train=pb.TrainTask(round=newest.name, adapter=adapter, timeout=timeout))
    if newest.state == run_pb2.Round.STATE_EVALUATING and not part.is_evaluated:
        adapter = adapter_spec(artifacts, newest.merged_adapter_sha256)
        return pb.PollTaskResponse(evaluate=pb.EvaluateTask(round=newest.name, adapter=adapter, timeout=timeout))
    return None


def directive(connection: Connection, client: ClientName, round_name: str) -> "pb.Directive.ValueType":
    """Whether the client should go on with what it says that it does."""
    run = runs.load_run(connection, client.run)
    if run.state in runs.ENDED:
        return pb.DIRECTIVE_LEAVE
    newest = rounds.newest_round(connection, client.run)
    if round_name and (newest is None or newest.name != round_name):
        return pb.DIRECTIVE_ABANDON_ROUND
    return pb.DIRECTIVE_CONTINUE


def adapter_spec(artifacts: ArtifactStore, sha256: str) -> ArtifactSpec:
    """Announces a global adapter; raises ArtifactCorrupt where its file is missing."""
    size_bytes = artifacts.path(sha256).stat().st_size
    return ArtifactSpec(kind=ARTIFACT_KIND_ADAPTER, size_bytes=size_bytes, sha256=sha256)
