"""Join tokens: their digests, whom they enrol, and which certificate was given for them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "join_tokens",
        sa.Column("token_sha256", sa.String, primary_key=True),
        sa.Column("run", NAME, nullable=False),
        sa.Column("client", NAME, nullable=False),
        sa.Column("create_time_s", sa.Float, nullable=False),
        sa.Column("expire_time_s", sa.Float, nullable=False),
        sa.Column("use_time_s", sa.Float),
        sa.Column("key_sha256", sa.String, nullable=False),
        sa.Column("certificate_chain", sa.LargeBinary, nullable=False),
    )
