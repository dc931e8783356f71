"""What a client has given in earlier rounds of its run and goes on from: its own adapter, and its Gram matrices."""

from sqlalchemy import Connection, select

from fednano.names import ClientName, RoundName
from services.aggregator.store.participants import participations, set_participation
from services.aggregator.store.schema import PARTICIPANTS


def start_from_own(connection: Connection, name: RoundName, first_sha256: str) -> None:
    """Lets each participant of the round start from its own newest adapter, or from the run's first one.

    For those whose start is not settled yet: done again, it changes nothing.
    """
    for part in participations(connection, name):
        if not part.base_sha256:
            own = _newest_own(connection, name, part.name) or first_sha256
            set_participation(connection, name, part.name, {"base_sha256": own})


def is_own_adapter(connection: Connection, run: str, sha256: str, client: ClientName | None) -> bool:
    """Whether ``client`` starts from this adapter of its own; any client of the run where it is None, for then nobody
    proves who he is.
    """
    own = (PARTICIPANTS.c.run == run) & (PARTICIPANTS.c.base_sha256 != "")
    if client is not None:
        own &= PARTICIPANTS.c.client == client.client
    given = own & ((PARTICIPANTS.c.base_sha256 == sha256) | (PARTICIPANTS.c.adapter_sha256 == sha256))
    return connection.execute(select(PARTICIPANTS.c.run).where(given)).first() is not None


def gram_sha256s(connection: Connection, run: str) -> dict[str, str]:
    """The Gram matrices that clients have given in any round of the run, by client."""
    given = (PARTICIPANTS.c.run == run) & (PARTICIPANTS.c.gram_sha256 != "")
    rows = connection.execute(
        select(PARTICIPANTS.c.client, PARTICIPANTS.c.gram_sha256).where(given).order_by(PARTICIPANTS.c.number)
    )
    return {row.client: row.gram_sha256 for row in rows}


def has_gram(connection: Connection, client: ClientName) -> bool:
    """Whether the client has given its Gram matrices."""
    mine = (PARTICIPANTS.c.run == client.run) & (PARTICIPANTS.c.client == client.client)
    found = connection.execute(select(PARTICIPANTS.c.run).where(mine & (PARTICIPANTS.c.gram_sha256 != "")))
    return found.first() is not None


def _newest_own(connection: Connection, name: RoundName, client: ClientName) -> str | None:
    mine = (PARTICIPANTS.c.run == name.run) & (PARTICIPANTS.c.client == client.client)
    earlier = mine & (PARTICIPANTS.c.number < name.number) & (PARTICIPANTS.c.adapter_sha256 != "")
    newest = select(PARTICIPANTS.c.adapter_sha256).where(earlier).order_by(PARTICIPANTS.c.number.desc()).limit(1)
    sha256: str | None = connection.execute(newest).scalar_one_or_none()
    return sha256
