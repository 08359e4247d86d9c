"""Looking at files: one's lines, a directory, names and contents of a tree. Sent into the office as text; see `__init__.py`."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import time
from collections.abc import Iterator
from typing import Any

from tenure.brains.tools.inside.told import bounded, main, missing, path_of, refuse, say

LINE_CHARS_MAX = 2000
MATCH_CHARS_MAX = 300
BINARY_LOOK_BYTES = 8192
COUNTED_BYTES_MAX = 16 * 1024 * 1024
"""A longer file's lines are not counted to its end."""
SEARCHED_BYTES_MAX = 8 * 1024 * 1024
ENTRIES_MAX = 500
MATCHES_MAX = 200
WALKED_MAX = 200_000
PASSED_BY = frozenset({".git", ".hg", "node_modules", "__pycache__", ".venv", ".cache", ".tenure"})


def read(wanted: dict[str, Any]) -> None:
    path = path_of(wanted["path"])
    if not os.path.exists(path):
        missing(path)
    if os.path.isdir(path):
        refuse(f"{path} is a directory: list_files shows what is in it.")
    if not os.path.isfile(path):
        refuse(f"{path} is not a regular file.")
    first, count = wanted["first_line"], wanted["lines"]
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if b"\0" in file.read(BINARY_LOOK_BYTES):
            refuse(f"{path} is not text ({size} bytes): look at it with programs (file, xxd, python3) by shell.")
        file.seek(0)
        shown: list[str] = []
        number = 0
        for raw in file:
            number += 1
            if number < first:
                continue
            if len(shown) == count:
                break
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if len(line) > LINE_CHARS_MAX:
                line = f"{line[:LINE_CHARS_MAX]}[… {len(line) - LINE_CHARS_MAX} more characters in this line]"
            shown.append(f"{number:6}\t{line}")
        total = number + sum(1 for _ in file) if size <= COUNTED_BYTES_MAX else None
    if not shown:
        refuse(
            f"{path} has {number} lines, none from {first} on." if number else f"{path} is empty.",
            0 if not number else 65,
        )
    text = bounded(shown, count, "")
    until = first + len(text.rstrip("\n").split("\n")) - 1
    rest = (
        ""
        if total == until
        else f"\n[lines {first} to {until} of {total or 'many'}; go on with first_line={until + 1}]"
    )
    whole = rest == "" or (total is not None and until >= total)
    say(text.rstrip("\n") + ("" if whole and first == 1 else rest or f"\n[to the end, line {until}]"))


def entries(wanted: dict[str, Any]) -> None:
    path = path_of(wanted["path"])
    if not os.path.exists(path):
        missing(path)
    if not os.path.isdir(path):
        refuse(f"{path} is a file: read_file shows its lines.")
    found = sorted(os.scandir(path), key=lambda entry: (not entry.is_dir(follow_symlinks=False), entry.name))
    more = f"[… {len(found)} entries in all; name a directory below, or use find_files]"
    say(f"{path}:\n" + (bounded(map(_entry, found), ENTRIES_MAX, more) or "(empty)"))


def _entry(entry: os.DirEntry[str]) -> str:
    try:
        about = entry.stat(follow_symlinks=False)
    except OSError as error:
        return f"{'?':>12} {'':16} {entry.name} ({error.strerror})"
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(about.st_mtime))
    if stat.S_ISLNK(about.st_mode):
        return f"{'link':>12} {when} {entry.name} -> {os.readlink(entry.path)}"
    if stat.S_ISDIR(about.st_mode):
        return f"{'directory':>12} {when} {entry.name}/"
    return f"{about.st_size:>12} {when} {entry.name}"


def find(wanted: dict[str, Any]) -> None:
    root = path_of(wanted["path"])
    pattern = wanted["pattern"]
    found = sorted(path for path in _tree(root, pattern) if _fits(os.path.relpath(path, root), pattern))
    more = f"[… {len(found)} in all: a longer pattern or a directory below finds fewer]"
    say(bounded(found, ENTRIES_MAX, more) or f"Nothing below {root} has a name like {pattern}.")


def search(wanted: dict[str, Any]) -> None:
    root = path_of(wanted["path"])
    try:
        sought = re.compile(wanted["pattern"].encode(), re.IGNORECASE if wanted["ignore_case"] else 0)
    except re.error as error:
        refuse(f"The pattern is not a regular expression of Python's: {error}. Escape ( [ . * with a backslash.")
    files = [root] if os.path.isfile(root) else sorted(_tree(root, wanted["glob"]))
    glob = wanted["glob"]
    found: list[str] = []
    for path in files:
        if glob and not _fits(os.path.relpath(path, root) if path != root else os.path.basename(path), glob):
            continue
        found += _matches(path, sought, MATCHES_MAX + 1 - len(found))
        if len(found) > MATCHES_MAX:
            break
    more = "[… there are more: a narrower pattern, path or glob finds fewer]"
    say(bounded(found, MATCHES_MAX, more) or f"No line in the text files below {root} matches.")


def _matches(path: str, sought: re.Pattern[bytes], most: int) -> list[str]:
    found: list[str] = []
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > SEARCHED_BYTES_MAX:
            return []
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return []
    if b"\0" in data[:BINARY_LOOK_BYTES]:
        return []
    for number, line in enumerate(data.split(b"\n"), 1):
        if len(found) < most and sought.search(line):
            found.append(f"{path}:{number}: {line.decode('utf-8', 'replace').strip()[:MATCH_CHARS_MAX]}")
    return found


def _fits(name: str, pattern: str) -> bool:
    bare = pattern.removeprefix("./").removeprefix("**/")
    subject = name if "/" in bare else os.path.basename(name)
    ways = (bare, bare.replace("**/", ""), f"*/{bare}")
    return fnmatch.fnmatch(subject, bare) or any(fnmatch.fnmatch(name, way) for way in ways)


def _tree(root: str, named: str) -> Iterator[str]:
    """Files below `root`, but for directories of tools and caches, unless they are `named`."""
    if not os.path.isdir(root):
        missing(root) if not os.path.exists(root) else refuse(f"{root} is a file, not a directory.")
    walked = 0
    for there, directories, names in os.walk(root):
        directories[:] = sorted(one for one in directories if one not in PASSED_BY or one in named)
        for name in names:
            walked += 1
            if walked > WALKED_MAX:
                refuse(f"There are more than {WALKED_MAX} files below {root}: name a directory below it.")
            yield os.path.join(there, name)


def look(wanted: dict[str, Any]) -> None:
    {"read": read, "list": entries, "find": find, "search": search}[wanted["do"]](wanted)


if __name__ == "__main__":
    main(look)
