"""Connections to the database: what is set on each of them, so that a commit is durable and no wait is endless."""

import os
import socket
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from fednano.errors import SettingsInvalid

CONNECT_TIMEOUT_S = 5
POOL_TIMEOUT_S = 10.0
SQLITE = "sqlite"
POSTGRESQL = "postgresql+psycopg"
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000")
# The server drops a session whose peer is gone within half a minute, and with it the claim on the database.
SESSION_SETTINGS = (
    "statement_timeout=15000",
    "lock_timeout=5000",
    "idle_in_transaction_session_timeout=60000",
    "tcp_keepalives_idle=10",
    "tcp_keepalives_interval=5",
    "tcp_keepalives_count=3",
    "tcp_user_timeout=25000",
    "synchronous_commit=on",
)


def parse_database_url(text: str | URL) -> URL:
    """Raises SettingsInvalid where the text names no database that the aggregator can use."""
    try:
        url = make_url(text)
    except ArgumentError:
        # The text itself is left out: it may hold a password.
        raise SettingsInvalid(
            "--database is no URL: write sqlite:////absolute/path or postgresql+psycopg://user@host/name"
        ) from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername=POSTGRESQL)
    if url.drivername not in (SQLITE, POSTGRESQL):
        raise SettingsInvalid(f"--database: {url.drivername} is not supported: use sqlite or {POSTGRESQL}")
    if url.drivername == SQLITE and (not url.database or url.database == ":memory:"):
        raise SettingsInvalid("--database: SQLite needs a file, such as sqlite:////var/lib/fednano/fednano.sqlite3")
    return url


def shown(url: URL) -> str:
    """The URL for people: without its password."""
    return url.render_as_string(hide_password=True)


def make_engine(url: URL, on_connect: Callable[[Any], None]) -> Engine:
    """``on_connect`` gets each new DBAPI connection before its first use; what it raises ends the connection.

    There is one connection: the store lets one transaction at a time through.
    """
    is_sqlite = url.drivername == SQLITE
    engine = create_engine(
        url,
        pool_size=1,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={"timeout": CONNECT_TIMEOUT_S} if is_sqlite else _session_arguments(url),
    )
    if is_sqlite:
        event.listen(engine, "connect", _set_pragmas)
        event.listen(engine, "begin", _begin_immediate)

    def prepare(connection: Any, _record: Any) -> None:
        try:
            on_connect(connection)
        except BaseException:
            connection.close()
            raise

    event.listen(engine, "connect", prepare)
    return engine


def _session_arguments(url: URL) -> dict[str, object]:
    asked = url.query.get("options", "")
    settings = [f"-c {setting}" for setting in SESSION_SETTINGS]
    return {
        "connect_timeout": CONNECT_TIMEOUT_S,
        # Of two settings of one name the later wins: the operator's.
        "options": " ".join([*settings, asked if isinstance(asked, str) else " ".join(asked)]),
        "application_name": f"fednano-aggregator {os.getpid()} on {socket.gethostname()}",
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 25000,
    }


def _set_pragmas(connection: Any, _record: Any) -> None:
    # The driver would begin transactions late, and none at all for changes of tables.
    connection.isolation_level = None
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Any) -> None:
    """Takes the write lock at once: one that comes later in a transaction can be refused without a wait."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
