"""Join tokens in the database, by their digests: each is good for one client, once."""

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select, update

from services.aggregator.store.schema import CLIENTS, JOIN_TOKENS


@dataclass(frozen=True, kw_only=True)
class JoinTokenRow:
    """``run`` and ``client`` are empty where the token leaves them open. Times are Unix seconds."""

    sha256: str
    run: str
    client: str
    expire_time_s: float
    # Of the public key that it was used for; empty until then.
    key_sha256: str = ""
    certificate_chain: bytes = b""


def insert_token(connection: Connection, row: JoinTokenRow, create_time_s: float) -> None:
    values = {
        "token_sha256": row.sha256,
        "run": row.run,
        "client": row.client,
        "create_time_s": create_time_s,
        "expire_time_s": row.expire_time_s,
    }
    connection.execute(insert(JOIN_TOKENS).values(values))


def find_token(connection: Connection, sha256: str) -> JoinTokenRow | None:
    row = connection.execute(select(JOIN_TOKENS).where(JOIN_TOKENS.c.token_sha256 == sha256)).one_or_none()
    if row is None:
        return None
    return JoinTokenRow(
        sha256=sha256,
        run=row.run,
        client=row.client,
        expire_time_s=row.expire_time_s,
        key_sha256=row.key_sha256,
        certificate_chain=row.certificate_chain,
    )


def use_token(
    connection: Connection, sha256: str, *, client: str, key_sha256: str, certificate_chain: bytes, time_s: float
) -> None:
    """Writes down for whom and for what the token was used, in the transaction that found it unused."""
    said = {
        "client": client,
        "key_sha256": key_sha256,
        "certificate_chain": certificate_chain,
        "use_time_s": time_s,
    }
    connection.execute(update(JOIN_TOKENS).where(JOIN_TOKENS.c.token_sha256 == sha256).values(said))


def is_client_known(connection: Connection, client: str) -> bool:
    """Whether the id is some client's of any run, was enrolled, or is kept for a token that may still be used."""
    joined = select(CLIENTS.c.client).where(CLIENTS.c.client == client).limit(1)
    enrolled = select(JOIN_TOKENS.c.client).where(JOIN_TOKENS.c.client == client).limit(1)
    return any(connection.execute(known).first() is not None for known in (joined, enrolled))
