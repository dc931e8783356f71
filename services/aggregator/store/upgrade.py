"""Bringing a database to the tables of this version, by the migrations that come with the package."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from fednano.errors import StoreRefused

MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(connection: Connection, where: str, migrations: Path = MIGRATIONS) -> None:
    """Creates or upgrades the tables, in the caller's transaction: all of it or nothing.

    Raises StoreRefused for a database that a newer version wrote, or that has our tables without a revision.
    """
    config = Config()
    # The option is a format string.
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_heads()
    _refuse_unknown(connection, current, script, where)
    if current != tuple(script.get_heads()):
        command.upgrade(config, "head")


def _refuse_unknown(connection: Connection, current: tuple[str, ...], script: ScriptDirectory, where: str) -> None:
    known = {revision.revision for revision in script.walk_revisions()}
    unknown = sorted(set(current) - known)
    if unknown:
        raise StoreRefused(
            f"{where} has revision {', '.join(unknown)}, but this version knows {max(known)} at most: a newer FedNano "
            "wrote it; start that one, or restore a backup from before its upgrade",
            database=where,
        )
    if not current and inspect(connection).has_table("runs"):
        raise StoreRefused(
            f"{where} has tables but no revision: no release of FedNano wrote it; use another database",
            database=where,
        )
