"""What a client should do now, derived from the database alone: asking twice gives the same answer."""

import time
from pathlib import Path

from google.protobuf.duration_pb2 import Duration

from fednano.v1 import aggregator_service_pb2 as pb
from fednano.v1 import run_pb2
from fednano.v1.artifact_pb2 import ARTIFACT_KIND_ADAPTER, ArtifactSpec
from services.aggregator.artifact_store import ArtifactStore
from services.aggregator.store import rounds, runs
from services.aggregator.store.clients import evicted
from services.aggregator.store.participants import OUT
from services.aggregator.store.situations import Situation


def next_task(situation: Situation, artifacts: ArtifactStore) -> pb.PollTaskResponse | None:
    """The client's task, or None where it has to wait. Raises ClientEvicted.

    Blocks where the adapter has to be fetched; raises ArtifactCorrupt where it is missing.
    """
    if situation.client_state == run_pb2.Client.STATE_EVICTED:
        raise evicted(situation.client)
    if situation.run_state in runs.ENDED:
        return pb.PollTaskResponse(end=pb.EndTask(run_state=situation.run_state))
    newest = situation.newest
    if newest is None:
        return None
    timeout = Duration()
    timeout.FromMilliseconds(max(0, int(1000 * (newest.deadline_s - time.time()))))
    if _is_to_train(situation):
        sha256 = situation.own_base_sha256 or newest.base_sha256
        task = pb.TrainTask(
            round=str(newest.name),
            adapter=adapter_spec(artifacts.path(sha256), sha256),
            timeout=timeout,
            artifacts=situation.artifact_kinds,
        )
        return pb.PollTaskResponse(train=task)
    if _is_to_evaluate(situation):
        is_alone = situation.own_base_sha256 and situation.own_adapter_sha256
        sha256 = situation.own_adapter_sha256 if is_alone else newest.merged_sha256
        adapter = adapter_spec(artifacts.path(sha256), sha256)
        return pb.PollTaskResponse(evaluate=pb.EvaluateTask(round=str(newest.name), adapter=adapter, timeout=timeout))
    return None


def directive(situation: Situation, round_name: str) -> "pb.Directive.ValueType":
    """Whether the client should go on with what it says that it does in ``round_name``, which is empty when idle."""
    if situation.client_state == run_pb2.Client.STATE_EVICTED or situation.run_state in runs.ENDED:
        return pb.DIRECTIVE_LEAVE
    newest = situation.newest
    if not round_name:
        return pb.DIRECTIVE_CONTINUE
    is_current = newest is not None and str(newest.name) == round_name and newest.state not in rounds.OVER
    is_awaited = situation.part_state is not None and situation.part_state not in OUT
    return pb.DIRECTIVE_CONTINUE if is_current and is_awaited else pb.DIRECTIVE_ABANDON_ROUND


def adapter_spec(file: Path, sha256: str) -> ArtifactSpec:
    """Announces a global adapter, which is in that file."""
    return ArtifactSpec(kind=ARTIFACT_KIND_ADAPTER, size_bytes=file.stat().st_size, sha256=sha256)


def _is_to_train(situation: Situation) -> bool:
    """Whether the round still awaits this client's update."""
    newest, part_state = situation.newest, situation.part_state
    is_training = newest is not None and newest.state == run_pb2.Round.STATE_TRAINING
    return is_training and part_state == run_pb2.Participant.STATE_SELECTED


def _is_to_evaluate(situation: Situation) -> bool:
    """Whether the round still awaits this client's evaluation: whose update it does without, it does not ask."""
    newest, part_state = situation.newest, situation.part_state
    asked = (run_pb2.Participant.STATE_SELECTED, run_pb2.Participant.STATE_UPDATED)
    return newest is not None and newest.state == run_pb2.Round.STATE_EVALUATING and part_state in asked
