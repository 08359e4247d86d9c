"""The embedded control database: the server's own cluster, when `TENURE_DATABASE_URL` names no other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from urllib.parse import quote

from tenure.postgres.cluster import SUPERUSER, TINY, Cluster
from tenure.postgres.tree import ensure_tree, open_way
from tenure.settings import Settings

CONTROL_UID = 209_999
"""Just below the users of the offices (`210000 + office number`)."""
CONTROL_PARAMETERS = TINY | {
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_wal_size": "256MB",
    "log_min_duration_statement": "1000",
}


def control_cluster(settings: Settings) -> Cluster:
    """The cluster at `settings.control_dir`; copies the PostgreSQL tree when needed (blocks up to a second)."""
    tree = ensure_tree(settings)
    return Cluster(
        tree=tree,
        data_dir=settings.control_dir,
        socket_dir=settings.run_dir / "pg" / "_control",  # no agent can have this name
        log_file=settings.logs_dir / "control-postgresql.log",
        uid=CONTROL_UID,
        gid=CONTROL_UID,
        parameters=CONTROL_PARAMETERS,
    )


def control_dsn(settings: Settings) -> str:
    """DSN of the control database. The embedded one trusts whoever can enter its socket directory: root, its user."""
    if settings.database_url:
        return settings.database_url
    host = quote(str(settings.run_dir / "pg" / "_control"), safe="")
    return f"postgresql://{SUPERUSER}@{host}/postgres"


async def start_control_database(settings: Settings) -> str:
    """Starts the embedded control database, made first when it is not there; returns its DSN. With a `database_url`
    only returns that. Idempotent. Raises `SetupError`, `DiskFull`, `InternalError`."""
    if settings.database_url:
        return settings.database_url
    cluster = control_cluster(settings)
    if not cluster.data_dir.exists():
        fresh = cluster.data_dir.with_name(cluster.data_dir.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)  # what a killed initdb left
        await replace(cluster, data_dir=fresh).initdb()
        fresh.rename(cluster.data_dir)
    cluster.socket_dir.parent.mkdir(parents=True, exist_ok=True)
    open_way(settings, cluster.socket_dir.parent)
    await cluster.start()
    return control_dsn(settings)


async def stop_control_database(settings: Settings) -> None:
    """Stops the embedded control database; not an error when it does not run, or when there is none."""
    if not settings.database_url and settings.control_dir.exists():
        await control_cluster(settings).stop()
