"""When a join token was withdrawn."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("join_tokens") as join_tokens:
        join_tokens.add_column(sa.Column("revoke_time_s", sa.Float))
