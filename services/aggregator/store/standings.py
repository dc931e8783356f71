"""How far a round has come, counted by the database: asked at every change, also with thousands of participants."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from fednano.names import RoundName
from fednano.v1 import run_pb2 as pb
from services.aggregator.store.schema import CLIENTS, PARTICIPANTS


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Participants that answered, and those that did not yet: still active, lost for now, or left and put out."""

    answered: int = 0
    active: int = 0
    lost: int = 0
    gone: int = 0

    @property
    def asked(self) -> int:
        return self.answered + self.active + self.lost + self.gone


def training_standing(connection: Connection, name: RoundName) -> Standing:
    """Whose update is here and whose is not."""
    return _standing(connection, name, pb.Participant.STATE_UPDATED, (pb.Participant.STATE_SELECTED,))


def evaluation_standing(connection: Connection, name: RoundName) -> Standing:
    """Whose evaluation is here and whose is not."""
    asked = (pb.Participant.STATE_SELECTED, pb.Participant.STATE_UPDATED)
    return _standing(connection, name, pb.Participant.STATE_EVALUATED, asked)


def _standing(
    connection: Connection,
    name: RoundName,
    answered: "pb.Participant.State.ValueType",
    asked: "tuple[pb.Participant.State.ValueType, ...]",
) -> Standing:
    in_round = (PARTICIPANTS.c.run == name.run) & (PARTICIPANTS.c.number == name.number)
    same = (CLIENTS.c.run == PARTICIPANTS.c.run) & (CLIENTS.c.client == PARTICIPANTS.c.client)
    is_answered = PARTICIPANTS.c.state == answered
    counted = (
        select(is_answered.label("is_answered"), CLIENTS.c.state, func.count().label("clients"))
        .select_from(PARTICIPANTS.join(CLIENTS, same))
        .where(in_round & PARTICIPANTS.c.state.in_([answered, *asked]))
        .group_by(is_answered, CLIENTS.c.state)
    )
    counts = {"answered": 0, "active": 0, "lost": 0, "gone": 0}
    for row in connection.execute(counted):
        counts["answered" if row.is_answered else _presence(row.state)] += row.clients
    return Standing(**counts)


def _presence(state: "pb.Client.State.ValueType") -> str:
    if state == pb.Client.STATE_ACTIVE:
        return "active"
    return "lost" if state == pb.Client.STATE_LOST else "gone"
