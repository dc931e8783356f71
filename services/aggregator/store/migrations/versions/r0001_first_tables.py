"""The first tables: runs, clients, rounds, participants, events and measurements."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    _create_runs()
    _create_clients()
    _create_rounds()
    _create_participants()
    _create_histories()


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("run", NAME, unique=True, nullable=False),
        sa.Column("request_id", sa.String, unique=True),
        sa.Column("display_name", sa.String, nullable=False),
        sa.Column("config", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("current_round", sa.Integer),
        sa.Column("failure_reason", sa.Integer),
        sa.Column("failure_message", sa.String),
        sa.Column("create_time_s", sa.Float, nullable=False),
        sa.Column("start_time_s", sa.Float),
        sa.Column("end_time_s", sa.Float),
        sa.Column("event_count", sa.BigInteger, nullable=False),
        sa.Column("waiting_for", sa.String, nullable=False),
        sa.Column("resume_state", sa.Integer),
    )


def _create_clients() -> None:
    op.create_table(
        "clients",
        sa.Column("run", NAME, sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("client", NAME, primary_key=True),
        sa.Column("display_name", sa.String, nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("example_count", sa.BigInteger, nullable=False),
        sa.Column("join_time_s", sa.Float, nullable=False),
        sa.Column("heartbeat_time_s", sa.Float, nullable=False),
        sa.Column("parameter_counts", sa.JSON, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("refusal", sa.String, nullable=False),
    )


def _create_rounds() -> None:
    op.create_table(
        "rounds",
        sa.Column("run", NAME, sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("base_sha256", sa.String, nullable=False),
        sa.Column("merged_sha256", sa.String, nullable=False),
        sa.Column("create_time_s", sa.Float, nullable=False),
        sa.Column("end_time_s", sa.Float),
        sa.Column("deadline_s", sa.Float, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("merge_metrics", sa.JSON, nullable=False),
    )


def _create_participants() -> None:
    op.create_table(
        "participants",
        sa.Column("run", NAME, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("client", NAME, primary_key=True),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("example_count", sa.BigInteger, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("test_example_count", sa.BigInteger, nullable=False),
        sa.Column("test_metrics", sa.JSON, nullable=False),
        sa.Column("refusal", sa.String, nullable=False),
        sa.Column("adapter_sha256", sa.String, nullable=False),
        sa.Column("fisher_sha256", sa.String, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("merge_metrics", sa.JSON, nullable=False),
        sa.ForeignKeyConstraint(["run", "number"], ["rounds.run", "rounds.number"]),
        sa.ForeignKeyConstraint(["run", "client"], ["clients.run", "clients.client"]),
    )


def _create_histories() -> None:
    op.create_table(
        "events",
        sa.Column("run", NAME, sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("event", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "measurements",
        sa.Column("run", NAME, sa.ForeignKey("runs.run"), primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("create_time_s", sa.Float, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("client", NAME, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("value", sa.Float, nullable=False),
    )
