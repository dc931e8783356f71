"""Which artifacts of old rounds nothing asks for any more."""

from sqlalchemy import Connection, and_, not_, select, union

from services.aggregator.store.schema import PARTICIPANTS, ROUNDS

UPDATES = (PARTICIPANTS.c.adapter_sha256, PARTICIPANTS.c.fisher_sha256)
OTHERS = (PARTICIPANTS.c.gram_sha256, PARTICIPANTS.c.base_sha256, ROUNDS.c.base_sha256, ROUNDS.c.merged_sha256)


def update_sha256s(connection: Connection, run: str, first: int, last: int) -> set[str]:
    """Adapters and Fisher information that clients sent in these rounds; Gram matrices serve to the run's end."""
    is_sent = and_(PARTICIPANTS.c.run == run, PARTICIPANTS.c.number.between(first, last))
    return set(connection.execute(union(*(select(column).where(is_sent) for column in UPDATES))).scalars()) - {""}


def needed_sha256s(connection: Connection, run: str, first: int, last: int) -> set[str]:
    """Those of ``update_sha256s`` that anything names but the updates of this run up to round ``last``.

    That is more than is needed: of two runs that sent the same bytes, neither loses them.
    """
    is_sent = and_(PARTICIPANTS.c.run == run, PARTICIPANTS.c.number.between(first, last))
    sent = union(*(select(column.label("sha256")).where(is_sent, column != "") for column in UPDATES)).cte("sent")
    is_old = and_(PARTICIPANTS.c.run == run, PARTICIPANTS.c.number <= last)
    is_one = select(sent.c.sha256)
    named = union(
        *(select(column).where(column.in_(is_one), not_(is_old)) for column in UPDATES),
        *(select(column).where(column.in_(is_one)) for column in OTHERS),
    )
    return set(connection.execute(named).scalars())
