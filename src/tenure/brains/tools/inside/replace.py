"""Replacing files as a whole: written anew, or edited. Sent into the office as text; see `__init__.py`.

What is about to be done is written down, by the call's key and durably, before it is done: so that after a crash the same
key can be asked whether the file is as it was before, or as it was to become.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from typing import Any

from tenure.brains.tools.inside.told import EXIT_UNKNOWN, main, missing, near, path_of, refuse, say

EDITED_BYTES_MAX = 16 * 1024 * 1024
SHOWN_LINES_MAX = 10
RECORDS = os.path.expanduser("~/.tenure/edits")
KEPT_S = 14 * 86400
"""As long as the office knows the keys of commands."""


def replace(wanted: dict[str, Any]) -> None:
    path = os.path.realpath(path_of(wanted["path"]))
    if os.path.isdir(path):
        refuse(f"{path} is a directory.")
    os.makedirs(RECORDS, mode=0o700, exist_ok=True)
    with open(f"{RECORDS}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of edits at the same time each sees what the one before left
        before = _content(path)
        if wanted["do"] == "edit":
            after, told = _edited(path, before, wanted)
        else:
            after, told = _written(path, before, wanted)
        _note(_record(wanted["key"]), {"path": path, "before": _digest(before), "after": _digest(after)})
        _put(path, after, is_new=before is None)
    _prune()
    say(told)


def _written(path: str, before: bytes | None, wanted: dict[str, Any]) -> tuple[bytes, str]:
    content = wanted["content"].encode("utf-8", "surrogateescape")
    verb = "replaced" if before is not None else "made"
    if wanted["append"]:
        begun = before or b""
        between = b"\n" if begun and not begun.endswith(b"\n") else b""
        verb, content = "appended to" if begun else verb, begun + between + content
    os.makedirs(os.path.dirname(path), exist_ok=True)
    lines = content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    return content, f"{path} was {verb}; it has {len(content)} bytes in {lines} lines."


def _edited(path: str, before: bytes | None, wanted: dict[str, Any]) -> tuple[bytes, str]:
    if before is None:
        missing(path)
    old, new = (wanted[name].encode("utf-8", "surrogateescape") for name in ("old", "new"))
    if b"\r\n" in before and b"\r\n" not in old:
        old, new = old.replace(b"\n", b"\r\n"), new.replace(b"\n", b"\r\n")
    times = before.count(old)
    if times == 0:
        refuse(
            f"Nothing was changed: {path} does not have the old text in it, character by character.{_alike(before, old)}"
        )
    if times > 1 and not wanted["all"]:
        places = ", ".join(map(str, _lines_of(before, old)[:SHOWN_LINES_MAX]))
        refuse(
            f"Nothing was changed: the old text is in {path} {times} times (lines {places}). Give more of what stands around "
            "it, so that it is there once, or set all."
        )
    first = before.count(b"\n", 0, before.index(old)) + 1
    return before.replace(old, new), f"{path} was edited: {times} place{'s' * (times > 1)}, the first in line {first}."


def _alike(before: bytes, old: bytes) -> str:
    """Where the file has something like the text that was not found."""
    lines = before.decode("utf-8", "replace").split("\n")
    wanted = next((line for line in old.decode("utf-8", "replace").split("\n") if line.strip()), "")
    for number, line in enumerate(lines, 1):
        if wanted.strip() and line.strip() == wanted.strip() and line != wanted:
            return f" Line {number} differs from its first line in white space only: {line!r}."
        if wanted and line.rstrip("\r") == wanted:
            return f" Its first line is line {number}; what follows there is different. Read the file again."
    return near(wanted, lines[:20_000]) + " Read the file again."


def _lines_of(before: bytes, old: bytes) -> list[int]:
    found: list[int] = []
    at = before.find(old)
    while at >= 0 and len(found) < SHOWN_LINES_MAX:
        found.append(before.count(b"\n", 0, at) + 1)
        at = before.find(old, at + len(old))
    return found


def settle(wanted: dict[str, Any]) -> None:
    """What became of the key."""
    try:
        with open(_record(wanted["key"])) as file:
            record = json.load(file)
    except FileNotFoundError:
        refuse("The sandbox ended before anything was changed. Do it again.")
    now = _digest(_content(record["path"]))
    if now == record["after"]:
        say(f"{record['path']} is as it was to become.")
    elif now == record["before"]:
        refuse(f"The sandbox ended before {record['path']} was changed. Do it again.")
    else:
        refuse(
            f"The sandbox ended while {record['path']} was changed, and it has been changed since: read it.",
            EXIT_UNKNOWN,
        )


def _record(key: str) -> str:
    return f"{RECORDS}/{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _content(path: str) -> bytes | None:
    try:
        if os.path.getsize(path) > EDITED_BYTES_MAX:
            refuse(f"{path} is larger than {EDITED_BYTES_MAX} bytes: change it with a program, by shell.")
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _digest(content: bytes | None) -> str | None:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _note(path: str, record: dict[str, Any]) -> None:
    with open(f"{path}.new", "w") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)


def _put(path: str, content: bytes, *, is_new: bool) -> None:
    fresh = os.path.join(os.path.dirname(path), f".{os.path.basename(path)[:100]}.{os.getpid()}.new")
    try:
        with open(fresh, "xb") as file:
            if not is_new:
                os.fchmod(file.fileno(), os.stat(path).st_mode & 0o7777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.rename(fresh, path)
    except OSError:
        if os.path.exists(fresh):
            os.unlink(fresh)
        raise


def _prune() -> None:
    oldest = time.time() - KEPT_S
    for entry in os.scandir(RECORDS):
        if entry.name != "lock" and entry.stat().st_mtime < oldest:
            os.unlink(entry.path)


def act(wanted: dict[str, Any]) -> None:
    (settle if wanted["do"] == "settle" else replace)(wanted)


if __name__ == "__main__":
    main(act)
