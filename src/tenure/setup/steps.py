"""The steps of set-up, in order. Each knows whether it is needed, says what it will do, and does it; all are idempotent."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

from tenure.postgres.tree import WHEEL, PostgresTree, ensure_tree, wanted_version
from tenure.settings import Settings
from tenure.setup import image, keys, officed, packages, pool
from tenure.setup.progress import SetupProgress
from tenure.setup.system import release


@dataclass(frozen=True)
class Step:
    """`plan` returns what would be done, in words, or None when all is in place; it changes nothing and is quick."""

    name: str
    plan: Callable[[Settings], str | None]
    apply: Callable[[Settings, SetupProgress], object]


def _plan_packages(_: Settings) -> str | None:
    missing = packages.missing()
    if not missing:
        return None
    codename = release().codename
    runsc = f" (runsc from {codename}-backports)" if "runsc" in missing and packages.backports_needed(codename) else ""
    return f"install the Debian packages {', '.join(missing)}{runsc}"


def _plan_home(settings: Settings) -> str | None:
    if settings.home.is_dir() and settings.home.stat().st_mode & 0o777 == 0o711:
        return None
    return f"make {settings.home}, where everything is kept"


def _make_home(settings: Settings, _: SetupProgress) -> None:
    settings.home.mkdir(parents=True, exist_ok=True)
    settings.home.chmod(0o711)  # the users that databases run as pass through; nobody lists


def plan_postgres(settings: Settings) -> str | None:
    """None when PostgreSQL's copy is what this installation would copy."""
    if PostgresTree(settings.postgres_tree).version == wanted_version():
        return None
    return f"copy PostgreSQL ({WHEEL} {importlib.metadata.version(WHEEL)}) to {settings.postgres_tree}"


def _plan_image(settings: Settings) -> str | None:
    if image.is_current(settings):
        return None
    return f"build the base image {image.expected_id()} (1 GB, one or two minutes)"


STEPS = (
    Step("packages", _plan_packages, lambda _, progress: packages.install(packages.missing(), progress)),
    Step("home", _plan_home, _make_home),
    Step("pool", lambda settings: None if pool.is_ready(settings) else pool.plan(settings), pool.ensure_pool),
    Step("postgresql", plan_postgres, lambda settings, _: ensure_tree(settings)),
    Step("image", _plan_image, image.build),
    Step(
        "officed",
        lambda settings: None if officed.is_current(settings) else "compile officed with the image's compiler",
        lambda settings, _: officed.build(settings),
    ),
    Step(
        "keys",
        lambda settings: None if keys.exist(settings) else f"make the owner's SSH key in {settings.keys_dir}",
        lambda settings, _: keys.make(settings),
    ),
)
