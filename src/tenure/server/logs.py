"""The server's log: one rotating file, and stderr in the foreground."""

from __future__ import annotations

import faulthandler
import logging
import logging.handlers
import sys
from pathlib import Path

LOG_BYTES_MAX = 10 * 1024 * 1024
LOG_FILES_KEPT = 4
FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
QUIET = (
    "uvicorn",
    "uvicorn.error",
    "httpx",
    "httpcore",
    "asyncio",
    "alembic",
    "asyncssh",
    "websockets",
    "psycopg.pool",
)
"""Libraries of which only warnings are of interest."""


def configure_logging(file: Path, *, foreground: bool, debug: bool) -> None:
    """Sends everything to `file`, which is kept below `LOG_BYTES_MAX` with a few older ones beside it."""
    handlers: list[logging.Handler] = [
        logging.handlers.RotatingFileHandler(
            file, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES_KEPT, encoding="utf-8", errors="backslashreplace"
        )
    ]
    if foreground:
        handlers.append(logging.StreamHandler(sys.stderr))
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, format=FORMAT, handlers=handlers, force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    faulthandler.enable()


def tail(file: Path, *, since_byte: int = 0, lines_max: int = 20, bytes_max: int = 16 * 1024) -> str:
    """The last lines of a log, of those after `since_byte`; empty when there is none."""
    try:
        with file.open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(since_byte if since_byte <= size else 0, size - bytes_max))
            text = log.read(bytes_max).decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines_max:])
