"""Clients that nobody here wrote, of tests/clients.lock, in an environment of their own: tests/.clients, made when needed."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LOCK = HERE / "clients.lock"
PLACE = HERE / ".clients"
INSTALL_S_MAX = 900
ENVIRONMENTS_MAX = 2
"""Kept: this one, and one of another branch."""


def environment() -> Path:
    """The directory with the clients' programs, `python` among them. Takes minutes once, and a moment after; sessions that come
    at the same time wait for the one that makes it."""
    name = f"{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}-{sys.version_info[0]}.{sys.version_info[1]}"
    PLACE.mkdir(exist_ok=True)
    ready = PLACE / name / ".ready"
    with (PLACE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            _make(PLACE / name)
            ready.touch()
            _forget_old(PLACE / name)
    return PLACE / name / "bin"


def _make(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    print(
        f"\n→ installing the clients of {LOCK.name} into {path} (a few minutes, once)", file=sys.__stderr__, flush=True
    )
    subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
    pip = [str(path / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "--require-hashes", "-r", str(LOCK)], check=True, timeout=INSTALL_S_MAX)


def _forget_old(current: Path) -> None:
    made = sorted((path for path in PLACE.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for path in made[:-ENVIRONMENTS_MAX]:
        if path != current:
            shutil.rmtree(path, ignore_errors=True)
