"""What an operator may do to a run while it runs: cancel, and put a client out. Each in its caller's transaction."""

from sqlalchemy import Connection

from fednano.errors import WireError
from fednano.names import ClientName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store import clients, rounds, runs
from services.aggregator.store.participants import find_participation, set_participation

UNMERGED = (pb.Round.STATE_TRAINING, pb.Round.STATE_MERGING)


def end_run(
    connection: Connection, run: str, state: "pb.Run.State.ValueType", failure: WireError | None = None
) -> pb.Run:
    """Ends a run and the round that it is in, which then has failed. Nothing changes for a run that has ended."""
    newest = rounds.newest_round(connection, run)
    is_open = newest is not None and newest.state not in rounds.OVER
    if newest is not None and is_open and runs.run_state(connection, run) not in runs.ENDED:
        rounds.set_round_state(connection, newest.name, pb.Round.STATE_FAILED)
    return runs.end_run(connection, run, state, failure)


def evict_client(connection: Connection, name: ClientName) -> pb.Client:
    """Puts a client out for good. Its part in the round in progress ends; an update that is not merged never will be.

    Nothing changes for one that was evicted before.
    """
    before = clients.load_client(connection, name)
    if before.state == pb.Client.STATE_EVICTED:
        return before
    evicted = clients.set_client_state(connection, name, pb.Client.STATE_EVICTED)
    newest = rounds.newest_round(connection, name.run)
    part = find_participation(connection, newest.name, name) if newest else None
    if newest is None or part is None or newest.state in rounds.OVER:
        return evicted
    is_unmerged = part.state == pb.Participant.STATE_UPDATED and newest.state in UNMERGED
    if part.state == pb.Participant.STATE_SELECTED or is_unmerged:
        set_participation(connection, newest.name, name, {"state": pb.Participant.STATE_EVICTED})
        rounds.announce_round(connection, newest.name, name)
    return evicted
