"""The tables of the aggregator's database. Times are Unix seconds; states are the contract's enum numbers.

A change here needs a new file in ``migrations/versions``: a test says where the two differ.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    TypeDecorator,
)
from sqlalchemy.engine import Dialect


class Words(TypeDecorator[str]):
    """Text that others may have chosen. PostgreSQL refuses the character zero; every database gets a mark for it."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else value.replace("\0", "\N{REPLACEMENT CHARACTER}")


METADATA = MetaData()

# Names sort by their bytes in every database, as they do in Python: the merge adds up clients in that order.
NAME = String().with_variant(String(collation="C"), "postgresql")

RUNS = Table(
    "runs",
    METADATA,
    Column("position", Integer, primary_key=True, autoincrement=True),
    Column("run", NAME, unique=True, nullable=False),
    Column("request_id", Words, unique=True),
    Column("display_name", Words, nullable=False),
    Column("config", LargeBinary, nullable=False),
    Column("state", Integer, nullable=False),
    Column("current_round", Integer),
    Column("failure_reason", Integer),
    Column("failure_message", Words),
    Column("create_time_s", Float, nullable=False),
    Column("start_time_s", Float),
    Column("end_time_s", Float),
    # The sequence of the newest event: counted here so that it has no gaps.
    Column("event_count", BigInteger, nullable=False, default=0),
    # What the run waits for, in words; empty when for nothing.
    Column("waiting_for", Words, nullable=False, default=""),
    # The state to go back to when a paused run is resumed.
    Column("resume_state", Integer),
)

CLIENTS = Table(
    "clients",
    METADATA,
    Column("run", NAME, ForeignKey("runs.run"), primary_key=True),
    Column("client", NAME, primary_key=True),
    Column("display_name", Words, nullable=False),
    Column("state", Integer, nullable=False),
    Column("example_count", BigInteger, nullable=False),
    Column("join_time_s", Float, nullable=False),
    Column("heartbeat_time_s", Float, nullable=False),
    Column("parameter_counts", JSON, nullable=False),
    Column("step", Integer, nullable=False, default=0),
    Column("refusal", Words, nullable=False, default=""),
)

ROUNDS = Table(
    "rounds",
    METADATA,
    Column("run", NAME, ForeignKey("runs.run"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("state", Integer, nullable=False),
    Column("base_sha256", String, nullable=False),
    Column("merged_sha256", String, nullable=False, default=""),
    Column("create_time_s", Float, nullable=False),
    Column("end_time_s", Float),
    # When the state's wait is over; set anew after a restart.
    Column("deadline_s", Float, nullable=False, default=0.0),
    Column("attempt", Integer, nullable=False, default=1),
    # What the merge measured over the whole round.
    Column("merge_metrics", JSON, nullable=False, default=dict),
)

PARTICIPANTS = Table(
    "participants",
    METADATA,
    Column("run", NAME, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("client", NAME, primary_key=True),
    Column("state", Integer, nullable=False),
    Column("example_count", BigInteger, nullable=False, default=0),
    Column("metrics", JSON, nullable=False, default=dict),
    Column("test_example_count", BigInteger, nullable=False, default=0),
    Column("test_metrics", JSON, nullable=False, default=dict),
    Column("refusal", Words, nullable=False, default=""),
    # What the accepted update is made of; empty until then.
    Column("adapter_sha256", String, nullable=False, default=""),
    Column("fisher_sha256", String, nullable=False, default=""),
    # Sent once a run, with the client's first update; empty in its other rounds.
    Column("gram_sha256", String, nullable=False, default=""),
    # The adapter that this client starts from where that is not the round's but its own.
    Column("base_sha256", String, nullable=False, default=""),
    # The attempt of the round in which the client was selected.
    Column("attempt", Integer, nullable=False, default=1),
    # What the merge measured of this client's update, such as "merge/share".
    Column("merge_metrics", JSON, nullable=False, default=dict),
    ForeignKeyConstraint(["run", "number"], ["rounds.run", "rounds.number"]),
    ForeignKeyConstraint(["run", "client"], ["clients.run", "clients.client"]),
)

EVENTS = Table(
    "events",
    METADATA,
    Column("run", NAME, ForeignKey("runs.run"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("event", LargeBinary, nullable=False),
)

MEASUREMENTS = Table(
    "measurements",
    METADATA,
    Column("run", NAME, ForeignKey("runs.run"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("create_time_s", Float, nullable=False),
    Column("number", Integer, nullable=False),
    # Empty for a measurement of the whole round.
    Column("client", NAME, nullable=False, default=""),
    Column("key", Words, nullable=False),
    Column("value", Float, nullable=False),
)

JOIN_TOKENS = Table(
    "join_tokens",
    METADATA,
    # Never the token itself: who reads the database must not be able to use it.
    Column("token_sha256", String, primary_key=True),
    # Empty: any run, any client.
    Column("run", NAME, nullable=False, default=""),
    Column("client", NAME, nullable=False, default=""),
    Column("create_time_s", Float, nullable=False),
    Column("expire_time_s", Float, nullable=False),
    # Once it was used: when, for which public key, and what was given for it. Or when it was withdrawn.
    Column("use_time_s", Float),
    Column("revoke_time_s", Float),
    Column("key_sha256", String, nullable=False, default=""),
    Column("certificate_chain", LargeBinary, nullable=False, default=b""),
)
