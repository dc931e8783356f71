"""Join tokens in the database, by their digests: each is good for one client, once, unless it is withdrawn before."""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Row, func, insert, or_, select, tuple_, update

from fednano.errors import FieldInvalid, ResourceNotFound
from fednano.security.join_token import ID_LETTERS, token_id
from fednano.v1 import enrollment_service_pb2 as pb
from services.aggregator.store.database import timestamp
from services.aggregator.store.schema import CLIENTS, JOIN_TOKENS


@dataclass(frozen=True, kw_only=True)
class JoinTokenRow:
    """``run`` and ``client`` are empty where the token leaves them open. Times are Unix seconds."""

    sha256: str
    run: str
    client: str
    create_time_s: float
    expire_time_s: float
    use_time_s: float | None = None
    revoke_time_s: float | None = None
    # Of the public key that it was used for; empty until then.
    key_sha256: str = ""
    certificate_chain: bytes = b""

    def state(self, now_s: float) -> "pb.JoinToken.State.ValueType":
        if self.key_sha256:
            return pb.JoinToken.STATE_USED
        if self.revoke_time_s is not None:
            return pb.JoinToken.STATE_REVOKED
        return pb.JoinToken.STATE_UNUSED if now_s < self.expire_time_s else pb.JoinToken.STATE_EXPIRED

    def shown(self, now_s: float) -> pb.JoinToken:
        """All that may be known of it."""
        return pb.JoinToken(
            id=token_id(self.sha256),
            run=self.run,
            client_id=self.client,
            state=self.state(now_s),
            create_time=timestamp(self.create_time_s),
            expire_time=timestamp(self.expire_time_s),
            use_time=timestamp(self.use_time_s),
            revoke_time=timestamp(self.revoke_time_s),
        )


def insert_token(connection: Connection, row: JoinTokenRow) -> None:
    values = {
        "token_sha256": row.sha256,
        "run": row.run,
        "client": row.client,
        "create_time_s": row.create_time_s,
        "expire_time_s": row.expire_time_s,
    }
    connection.execute(insert(JOIN_TOKENS).values(values))


def find_token(connection: Connection, sha256: str) -> JoinTokenRow | None:
    row = connection.execute(select(JOIN_TOKENS).where(JOIN_TOKENS.c.token_sha256 == sha256)).one_or_none()
    return None if row is None else _to_row(row)


def named_token(connection: Connection, name: str) -> JoinTokenRow:
    """By JoinToken.id. Raises ResourceNotFound."""
    row = connection.execute(select(JOIN_TOKENS).where(_has_id(name))).first()
    if row is None:
        message = f"there is no join token {name}: `fednano client token list` shows those there are"
        raise ResourceNotFound(message, name=name)
    return _to_row(row)


def list_tokens(connection: Connection, *, after: str = "", limit: int) -> list[JoinTokenRow]:
    """Oldest first: those made after the one with the id ``after``, or all. Raises FieldInvalid for an unknown one."""
    order = (JOIN_TOKENS.c.create_time_s, JOIN_TOKENS.c.token_sha256)
    later = select(JOIN_TOKENS).order_by(*order).limit(limit)
    if after:
        last = connection.execute(select(*order).where(_has_id(after))).first()
        if last is None:
            raise FieldInvalid("page_token must be next_page_token of an earlier answer", field="page_token")
        later = later.where(tuple_(*order) > tuple_(*last))
    return [_to_row(row) for row in connection.execute(later)]


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


def revoke_token(connection: Connection, sha256: str, time_s: float) -> None:
    """In the transaction that found it unused."""
    connection.execute(
        update(JOIN_TOKENS).where(JOIN_TOKENS.c.token_sha256 == sha256).values({"revoke_time_s": time_s})
    )


def is_client_known(connection: Connection, client: str, now_s: float) -> bool:
    """Whether the id is some client's of any run, was enrolled, or is kept for a token that may still be used."""
    may_be_used = (JOIN_TOKENS.c.expire_time_s > now_s) & JOIN_TOKENS.c.revoke_time_s.is_(None)
    kept = or_(JOIN_TOKENS.c.key_sha256 != "", may_be_used)
    joined = select(CLIENTS.c.client).where(CLIENTS.c.client == client).limit(1)
    enrolled = select(JOIN_TOKENS.c.client).where((JOIN_TOKENS.c.client == client) & kept).limit(1)
    return any(connection.execute(known).first() is not None for known in (joined, enrolled))


def _has_id(name: str) -> ColumnElement[bool]:
    return func.substr(JOIN_TOKENS.c.token_sha256, 1, ID_LETTERS) == name


def _to_row(row: "Row[tuple[object, ...]]") -> JoinTokenRow:
    return JoinTokenRow(
        sha256=row.token_sha256,
        run=row.run,
        client=row.client,
        create_time_s=row.create_time_s,
        expire_time_s=row.expire_time_s,
        use_time_s=row.use_time_s,
        revoke_time_s=row.revoke_time_s,
        key_sha256=row.key_sha256,
        certificate_chain=row.certificate_chain,
    )
