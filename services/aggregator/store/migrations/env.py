"""Run by Alembic: applies the revisions on the connection, and in the transaction, that the store hands over."""

from alembic import context

from services.aggregator.store.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite alters a table by writing it anew.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
