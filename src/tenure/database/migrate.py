"""Brings the control database to the schema of this version of Tenure."""

from __future__ import annotations

import time
from pathlib import Path

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from tenure.errors import SetupError

MIGRATION_LOCK = 0x54454E55_5245
"""Key of the advisory lock ("TENURE" in ASCII) that keeps two starting processes from migrating at once."""
CONNECT_TRIES = 20
CONNECT_PAUSE_S = 0.5


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def head() -> str:
    """The newest revision that this version knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def _connect(dsn: str) -> psycopg.Connection[tuple[object, ...]]:
    for left in reversed(range(CONNECT_TRIES)):
        try:
            return psycopg.connect(dsn, connect_timeout=5)
        except psycopg.OperationalError as error:
            if left == 0:
                raise SetupError(
                    f"The control database does not answer: {str(error).strip()}",
                    hint="Check TENURE_DATABASE_URL, or the embedded PostgreSQL with `tenure doctor`.",
                ) from error
            time.sleep(CONNECT_PAUSE_S)
    raise AssertionError("unreachable")


def migrate(dsn: str) -> None:
    """Runs every migration that is missing, each in a transaction of its own. Blocking; may be called by several processes at
    once, and again at any time. Raises `SetupError` when the database does not answer, or is of a newer Tenure."""
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: _connect(dsn), poolclass=sa.pool.NullPool)
    with engine.connect() as connection:
        lock = sa.text("select pg_advisory_lock(:key)")
        connection.execute(lock, {"key": MIGRATION_LOCK})  # held by the session: gone when the process is
        connection.commit()
        config = _config()
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except Exception as error:
            if "Can't locate revision" not in str(error):
                raise
            raise SetupError(
                "The control database was written by a newer version of Tenure.",
                hint="Install that version again, or point TENURE_DATABASE_URL at another database.",
            ) from error
