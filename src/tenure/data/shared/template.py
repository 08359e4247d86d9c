"""The cluster that every shared database starts from: who may do what in it before anything is granted.

Roles: `owner`, as whom the person works, which owns the database `shared` and all that is made in it and is no superuser;
`readers` and `writers`, what a grant to all of the database is; `granted`, what every grant is; and `tenure`, the superuser. An
agent's role is made by its grant (`roles`). No role has a password: only this machine's root passes the socket, as whom it likes.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import tempfile
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tenure.offices.volumes.base import VolumeDriver
from tenure.postgres.cluster import SUPERUSER, Cluster
from tenure.postgres.extensions import MADE_READY
from tenure.postgres.template import TEMPLATE_UID
from tenure.postgres.tree import ensure_tree
from tenure.settings import Settings

OWNER, READERS, WRITERS, GRANTED = "owner", "readers", "writers", "granted"
DATABASE = "shared"
MAP = "tenure"
HBA_NAME, IDENT_NAME = "tenure.hba", "tenure.ident"
HBA = f"local all all peer map={MAP}\n"
VERSION = 1
"""Another one makes templates anew."""

_ROLES = f"""
CREATE ROLE {OWNER} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE ROLE {GRANTED} NOLOGIN;
CREATE ROLE {READERS} NOLOGIN ROLE {OWNER};
CREATE ROLE {WRITERS} NOLOGIN;
GRANT {READERS} TO {WRITERS};
GRANT pg_checkpoint, pg_monitor, pg_signal_backend, pg_use_reserved_connections TO {OWNER};
CREATE DATABASE {DATABASE} OWNER {OWNER};
REVOKE ALL ON DATABASE postgres, template1, {DATABASE} FROM PUBLIC;
GRANT CONNECT ON DATABASE {DATABASE} TO {GRANTED};
GRANT TEMPORARY ON DATABASE {DATABASE} TO {WRITERS};
"""
"""Temporary tables are for those who may write: they take room of the database's disk, which no other limit covers."""
_PRIVILEGES = f"""
ALTER SCHEMA public OWNER TO {OWNER};
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO {GRANTED};
ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT USAGE ON SCHEMAS TO {READERS};
ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT SELECT ON TABLES TO {READERS};
ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT INSERT, UPDATE, DELETE ON TABLES TO {WRITERS};
ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT SELECT ON SEQUENCES TO {READERS};
ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT USAGE ON SEQUENCES TO {WRITERS};
ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} REVOKE EXECUTE ON ROUTINES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT EXECUTE ON ROUTINES TO {READERS};
CREATE SCHEMA tenure;
GRANT USAGE ON SCHEMA tenure TO {OWNER}, {GRANTED};
CREATE TABLE tenure.state (roles text NOT NULL);
INSERT INTO tenure.state VALUES ('');
CREATE TABLE tenure.row_limited (relation oid PRIMARY KEY, switched boolean NOT NULL, policies text NOT NULL);
COMMENT ON TABLE tenure.row_limited IS 'Tables of which a grant gives some rows only. Kept by Tenure.';
GRANT SELECT, INSERT, UPDATE, DELETE ON tenure.row_limited TO {OWNER};
CREATE TABLE tenure.effects (
    key text,
    result jsonb,
    at timestamptz NOT NULL DEFAULT now(),
    role name NOT NULL DEFAULT session_user,
    PRIMARY KEY (key, role)
);
COMMENT ON TABLE tenure.effects IS 'Effects of runs that happened, so that none happens twice. Kept by Tenure.';
ALTER TABLE tenure.effects ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON tenure.effects USING (role = session_user) WITH CHECK (role = session_user);
GRANT SELECT, INSERT, UPDATE ON tenure.effects TO {OWNER}, {WRITERS};
DO $$
DECLARE routine regprocedure;
BEGIN
    FOR routine IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND (
        proname LIKE 'pg\\_advisory\\_%' OR proname LIKE 'pg\\_try\\_advisory\\_%'
        OR proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_open', 'lowrite', 'lo_put', 'lo_truncate', 'lo_truncate64')
        OR proname = 'pg_logical_emit_message'
    ) LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', routine);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO {OWNER}', routine);
    END LOOP;
END $$;
"""
"""Advisory locks share one table of locks with everybody; large objects and log messages fill the disk without any privilege."""


async def ensure_template(settings: Settings, volumes: VolumeDriver) -> Path:
    """A volume with the template cluster as `postgres/`, made when there is none of this version: takes about 2 s once. One
    caller at a time. Raises `SetupError`, `DiskFull`, `InternalError`."""
    tree = ensure_tree(settings)
    key = hashlib.sha256(f"{tree.version} {VERSION} {MADE_READY} {_ROLES} {_PRIVILEGES}".encode()).hexdigest()[:12]
    template = settings.shared_dir / ".templates" / key
    if await volumes.exists(template):
        return template
    fresh = settings.shared_dir / ".templates" / f".{key}"
    await volumes.delete(fresh)  # what a killed server left
    await volumes.create_empty(fresh)
    # A short directory of its own: socket paths are limited.
    with tempfile.TemporaryDirectory(prefix="tenure-pg-") as place:
        os.chmod(place, 0o711)
        cluster = Cluster(
            tree=tree,
            data_dir=Path(place, "postgres"),
            socket_dir=Path(place, "s"),
            log_file=Path(place, "log"),
            uid=TEMPLATE_UID,
            gid=TEMPLATE_UID,
        )
        await cluster.initdb()
        await cluster.start()
        try:
            await _fill(cluster)
        finally:
            await cluster.stop()
        shutil.copytree(cluster.data_dir, fresh / "postgres", symlinks=True)
    fresh.chmod(0o700)
    await volumes.move(fresh, template)
    return template


async def _fill(cluster: Cluster) -> None:
    def dsn(database: str) -> str:
        return make_conninfo(host=str(cluster.socket_dir), user=SUPERUSER, dbname=database)

    async with await psycopg.AsyncConnection.connect(dsn("postgres"), autocommit=True) as connection:
        for statement in _ROLES.split(";\n"):
            await connection.execute(statement.encode())
    async with await psycopg.AsyncConnection.connect(dsn(DATABASE), autocommit=True) as connection:
        for extension in MADE_READY:
            await connection.execute(sql.SQL("CREATE EXTENSION {}").format(sql.Identifier(extension)))
        await connection.execute(_PRIVILEGES.encode())
        await connection.execute("VACUUM ANALYZE")


def write_access_files(volume: Path, gid: int) -> None:
    """Who may log in, written anew before each start: what lies in a volume that came from elsewhere is not asked."""
    ident = f"{MAP} {pwd.getpwuid(os.geteuid()).pw_name} all\n"
    for name, text in ((HBA_NAME, HBA), (IDENT_NAME, ident)):
        path = volume / name
        if path.is_file() and not path.is_symlink() and path.read_text() == text and path.stat().st_gid == gid:
            continue  # on a full disk there may be no room to write
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        path.chmod(0o640)
        if os.geteuid() == 0:
            os.chown(path, 0, gid)
