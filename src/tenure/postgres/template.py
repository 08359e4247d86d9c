"""The database that every office starts from: made once per image, cloned with it.

Roles: `agent`, which owns the database `agent` and nothing else, and `tenure`, the superuser, whose password lies in
`postgres.secret` beside the data directory: on the host, in no office's root. The agent is an ordinary user, because a
PostgreSQL superuser can run programs and read files as the server's user, outside the sandbox.
What it may add to its database: `tenure.postgres.extensions`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tenure.postgres.cluster import SUPERUSER, Cluster
from tenure.postgres.tree import ensure_tree
from tenure.settings import Settings

AGENT_ROLE = "agent"
AGENT_DATABASE = "agent"
SECRET_NAME = "postgres.secret"
TEMPLATE_UID = 210_000
"""Owner of a template's files; an office's first start gives them to the office's own user."""

HBA = f"""\
# TYPE  DATABASE         USER           METHOD
local   {AGENT_DATABASE:<16} {AGENT_ROLE:<14} trust
local   all              {SUPERUSER:<14} scram-sha-256
"""


async def build_template(settings: Settings, target: Path) -> None:
    """Makes a stopped cluster at the missing `target` (`<image>/postgres`) and `postgres.secret` beside it (mode 0600).
    Takes about 2 s. Leaves nothing behind when it fails. Raises `SetupError`, `DiskFull`, `InternalError`."""
    tree = ensure_tree(settings)
    password = secrets.token_urlsafe(32)
    # A short directory of its own: socket paths are limited, and the image may not have its final name yet.
    with tempfile.TemporaryDirectory(prefix="tenure-pg-") as place:
        os.chmod(place, 0o711)
        cluster = Cluster(
            tree=tree,
            data_dir=target,
            socket_dir=Path(place, "s"),
            log_file=Path(place, "log"),
            uid=TEMPLATE_UID,
            gid=TEMPLATE_UID,
        )
        try:
            await cluster.initdb()
            await cluster.start()
            try:
                await _fill(cluster, password)
            finally:
                await cluster.stop()
            (target / "pg_hba.conf").write_text(HBA)
            write_secret(target.parent / SECRET_NAME, password)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise


async def _fill(cluster: Cluster, password: str) -> None:
    def dsn(database: str) -> str:
        return make_conninfo(host=str(cluster.socket_dir), user=SUPERUSER, dbname=database)

    agent, database = sql.Identifier(AGENT_ROLE), sql.Identifier(AGENT_DATABASE)
    async with await psycopg.AsyncConnection.connect(dsn("postgres"), autocommit=True) as connection:
        await connection.execute(sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE").format(agent))
        # For pgstattuple and its like, on tables that are the agent's anyway.
        await connection.execute(sql.SQL("GRANT pg_stat_scan_tables TO {}").format(agent))
        # Its own server may write a checkpoint when it likes: that is how a full disk gives back what the log took.
        await connection.execute(sql.SQL("GRANT pg_checkpoint TO {}").format(agent))
        await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, agent))
        await connection.execute(
            sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(SUPERUSER), sql.Literal(password))
        )
        for other in ("postgres", "template1"):
            await connection.execute(
                sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(other)),
            )
    async with await psycopg.AsyncConnection.connect(dsn(AGENT_DATABASE), autocommit=True) as connection:
        await connection.execute(sql.SQL("ALTER SCHEMA public OWNER TO {}").format(agent))
        await connection.execute("VACUUM ANALYZE")


def write_secret(path: Path, text: str) -> None:
    """Writes `path` anew, readable by its owner only from its first byte on."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
