"""A participant's Gram matrices, and the adapter it starts from where that is its own."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("participants") as participants:
        participants.add_column(sa.Column("gram_sha256", sa.String, nullable=False, server_default=""))
        participants.add_column(sa.Column("base_sha256", sa.String, nullable=False, server_default=""))
