"""Fixtures for the tests that run on the real parts: a set-up home, its base image, and names nobody else uses.

Tests of pure code need none of this and run on any machine. See `homes.py` for how sessions share one image.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from homes import make_home, remove_abandoned_homes, remove_home
from tenure.offices.volumes.btrfs_calls import count_again, counting_is_lost
from tenure.settings import Settings
from tenure.setup import Image, current_image, install

# Where the tests run in the background of a shell, Ctrl-C is ignored, and so it would be by every program that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = (
    "fixtures.database",
    "fixtures.workers",
    "fixtures.live",
    "fixtures.killer",
    "fixtures.stage",
    "fixtures.thinking",
)

DEFAULT_TEST_HOME = "/var/lib/tenure-test"
TEST_POOL_BYTES = 20 * 1024**3
COUNT_EVERY_S = 0.5


@pytest.fixture(scope="session")
def test_home() -> Path:
    """The shared home with pool, image, officed and PostgreSQL, set up if need be. Do not start a server on it."""
    if os.geteuid() != 0:
        pytest.fail("These tests run on real sandboxes and volumes and need root: use `make test`.", pytrace=False)
    home = Path(os.environ.get("TENURE_TEST_HOME") or DEFAULT_TEST_HOME).absolute()
    install(Settings(home=home, pool_bytes=TEST_POOL_BYTES), None)
    return home


@pytest.fixture(scope="session")
def session_prefix() -> str:
    """Begins every name made in this session, so that two sessions on one machine never meet."""
    return f"t{secrets.token_hex(3)}"


@pytest.fixture(scope="session")
def new_settings(test_home: Path, session_prefix: str) -> Iterator[Callable[[], Settings]]:
    """Makes a fresh home (sharing the image) and its settings with a free port; all are removed after the session."""
    shared = Settings(home=test_home, pool_bytes=TEST_POOL_BYTES)
    homes = shared.pool_dir / "homes"
    remove_abandoned_homes(homes)
    ended = threading.Event()
    counting = threading.Thread(target=keep_counting, args=(shared.pool_dir, ended), daemon=True)
    counting.start()
    made: list[tuple[Settings, IO[str]]] = []

    def make() -> Settings:
        made.append(make_home(shared, homes / f"{session_prefix}-{len(made)}"))
        return made[-1][0]

    yield make
    ended.set()
    counting.join()
    for settings, lock in made:
        remove_home(settings.home)
        lock.close()


def keep_counting(pool: Path, ended: threading.Event) -> None:
    """What a server does for its pool, for the tests that have none: the kernel loses count of volumes now and then, and with
    it their limits."""
    while not ended.wait(COUNT_EVERY_S):
        with contextlib.suppress(OSError):
            if counting_is_lost(pool):
                count_again(pool)


@pytest.fixture(scope="session")
def settings(new_settings: Callable[[], Settings]) -> Settings:
    """Settings of one home shared by the session; for a server of its own, a test calls `new_settings()`."""
    return new_settings()


@pytest.fixture(scope="session")
def image(settings: Settings) -> Image:
    """The current base image (read-only volume at `image.path`)."""
    return current_image(settings)


@pytest.fixture
def unique_name(session_prefix: str) -> Callable[[str], str]:
    """Makes agent or sandbox names: `unique_name("noisy")` gives e.g. `t1f2e3d-noisy-9ab1`, valid everywhere."""
    return lambda label="a": f"{session_prefix}-{label}-{secrets.token_hex(2)}"
