"""Which artifacts of old rounds nothing asks for any more."""

from collections.abc import Sequence

from sqlalchemy import Connection, and_, not_, select, union

from services.aggregator.store.schema import PARTICIPANTS, ROUNDS


def update_sha256s(connection: Connection, run: str, first: int, last: int) -> list[str]:
    """Adapters and Fisher information that clients sent in these rounds; Gram matrices serve to the run's end."""
    rows = connection.execute(
        select(PARTICIPANTS.c.adapter_sha256, PARTICIPANTS.c.fisher_sha256).where(
            PARTICIPANTS.c.run == run, PARTICIPANTS.c.number.between(first, last)
        )
    )
    return sorted({sha256 for row in rows for sha256 in row if sha256})


def needed_sha256s(connection: Connection, sha256s: Sequence[str], run: str, last: int) -> set[str]:
    """Those that anything names but the updates of this run up to round ``last``.

    That is more than is needed: of two runs that sent the same bytes, neither loses them.
    """
    is_old = and_(PARTICIPANTS.c.run == run, PARTICIPANTS.c.number <= last)
    updates = [PARTICIPANTS.c.adapter_sha256, PARTICIPANTS.c.fisher_sha256]
    always = [PARTICIPANTS.c.gram_sha256, PARTICIPANTS.c.base_sha256, ROUNDS.c.base_sha256, ROUNDS.c.merged_sha256]
    named = union(
        *(select(column).where(column.in_(sha256s), not_(is_old)) for column in updates),
        *(select(column).where(column.in_(sha256s)) for column in always),
    )
    return set(connection.execute(named).scalars())
