"""Office databases for tests: one template per session, a home and volume per test, everything stopped at the end."""

from __future__ import annotations

import asyncio
import atexit
import functools
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tenure.data.database import OfficeDatabase
from tenure.postgres.template import build_template
from tenure.postgres.tree import ensure_tree
from tenure.settings import Settings

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="databases run as users of their own, which takes root")
_uids = itertools.count(290_000 + os.getpid() % 1000 * 10)


@functools.cache
def template_home() -> Path:
    """A short directory (socket paths are limited) with a PostgreSQL tree and `image/postgres`."""
    place = Path(tempfile.mkdtemp(prefix="tenure-pg-", dir="/tmp"))
    place.chmod(0o711)
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    settings = Settings(home=place)
    ensure_tree(settings)
    (place / "image").mkdir()
    with ThreadPoolExecutor(1) as pool:  # a loop of its own: the caller may be in one already
        pool.submit(lambda: asyncio.run(build_template(settings, place / "image" / "postgres"))).result()
    return place


def new_home() -> Settings:
    """A fresh home that shares the tree."""
    place = Path(tempfile.mkdtemp(prefix="h", dir=template_home()))
    place.chmod(0o711)
    (place / "postgresql").symlink_to(template_home() / "postgresql")
    return Settings(home=place)


def new_volume(settings: Settings, agent: str) -> Path:
    volume = settings.volumes_dir / agent
    volume.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--reflink=auto", str(template_home() / "image"), str(volume)], check=True)
    return volume


@asynccontextmanager
async def office_database(agent: str = "analyst") -> AsyncIterator[OfficeDatabase]:
    """A database that listens at `<home>/door/.s.PGSQL.5432`, as psql names sockets; `door(database)` gives its DSN."""
    settings = new_home()
    database = OfficeDatabase(settings, agent, new_volume(settings, agent), next(_uids))
    doorway = settings.home / "door"
    doorway.mkdir()
    await database.serve(doorway / ".s.PGSQL.5432")
    try:
        yield database
    finally:
        await database.close()
        await database.stop()
        shutil.rmtree(settings.home)


def home_of(database: OfficeDatabase) -> Path:
    return database.log_file.parent.parent


def second(database: OfficeDatabase) -> OfficeDatabase:
    """What a restarted server would make for the same office."""
    cluster = database._server.cluster  # pyright: ignore[reportPrivateUsage]
    return OfficeDatabase(Settings(home=home_of(database)), database.agent, cluster.data_dir.parent, cluster.uid)


def door(database: OfficeDatabase, user: str = "agent", dbname: str = "agent") -> str:
    """DSN through the pump."""
    return f"host={home_of(database) / 'door'} user={user} dbname={dbname}"


def behind(database: OfficeDatabase, user: str = "agent", dbname: str = "agent", password: str = "") -> str:
    """DSN past the pump, which only the host's root can use."""
    secret = f" password={password}" if password else ""
    return f"host={home_of(database) / 'run' / 'pg' / database.agent} user={user} dbname={dbname}{secret}"


def data_dir(database: OfficeDatabase) -> Path:
    return home_of(database) / "pool" / "volumes" / database.agent / "postgres"


def postmaster_pid(database: OfficeDatabase) -> int:
    return int((data_dir(database) / "postmaster.pid").read_text().split("\n", 1)[0])
