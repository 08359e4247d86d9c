"""Builds `officed`, the office's end of the door, with the image's own compiler: the host needs none."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tenure.errors import SetupError
from tenure.settings import Settings
from tenure.setup import chroot
from tenure.setup.image import current_image

SOURCES = Path(__file__).parent.parent / "offices" / "door" / "officed"
FLAGS = "-O2 -static -pthread -Wall"
COMPILE_TIMEOUT_S = 120
PROGRAM = "officed"
STAMP = "source.sha256"


def is_current(settings: Settings) -> bool:
    """Whether the program is there and was built from the present source."""
    try:
        stamped = (settings.officed_dir / STAMP).read_text()
    except OSError:
        return False
    program = settings.officed_dir / PROGRAM
    return stamped == _stamp() and program.is_file() and program.stat().st_size > 0


def build(settings: Settings) -> None:
    """Compiles and replaces the program in one step; running offices keep the old one. Raises `SetupError`."""
    settings.officed_dir.mkdir(parents=True, exist_ok=True)
    fresh = settings.officed_dir / f".{PROGRAM}.new"
    stamp = _stamp()
    chroot.run_inside(
        current_image(settings).rootfs,
        f"gcc {FLAGS} -o /tmp/officed /tmp/*.c",
        doing="Compiling officed",
        timeout_s=COMPILE_TIMEOUT_S,
        bring={path.name: path for path in _sources()},
        take={"officed": fresh},
    )
    fresh.chmod(0o755)
    fresh.rename(settings.officed_dir / PROGRAM)
    (settings.officed_dir / STAMP).write_text(stamp)


def _sources() -> list[Path]:
    found = sorted(SOURCES.glob("*.[ch]"))
    if not found:
        raise SetupError("The source of officed is missing from the tenure package.", hint="Reinstall tenure.")
    return found


def _stamp() -> str:
    digest = hashlib.sha256(FLAGS.encode())
    for path in _sources():
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest() + "\n"
