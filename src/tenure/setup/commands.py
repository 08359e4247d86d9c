"""Runs the tools that set-up stands on: no keyboard, a timeout on each, and their last words in the error."""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from tenure.errors import SetupError

TOOL_DIRS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
LAST_WORDS_LINES = 12
LAST_WORDS_CHARS = 2_000
KILL_WAIT_S = 5.0


def tool_environment() -> dict[str, str]:
    """The environment of every tool: the caller's, plain messages, no questions, the system's own programs first."""
    env = dict(os.environ)
    env["PATH"] = ":".join((*TOOL_DIRS, *(part for part in env.get("PATH", "").split(":") if part not in TOOL_DIRS)))
    return env | {
        "LC_ALL": "C.UTF-8",
        "LANGUAGE": "C",
        "DEBIAN_FRONTEND": "noninteractive",
        "DEBCONF_NONINTERACTIVE_SEEN": "true",
        "NEEDRESTART_MODE": "l",
    }


def find_tool(name: str) -> Path | None:
    """Where the program `name` is, looked for in the system's directories whatever the caller's PATH says."""
    found = shutil.which(name, path=":".join(TOOL_DIRS))
    return Path(found) if found else None


def run(
    argv: Sequence[str | Path],
    *,
    doing: str,
    timeout_s: float,
    on_line: Callable[[str], None] | None = None,
    hint: str | None = None,
    env: dict[str, str] | None = None,
) -> str:
    """Runs a tool to its end and returns what it printed (stdout and stderr together, in order).

    `doing` completes "…failed" in the error ("Building the base image"). `on_line` sees each line as it comes.
    Raises `SetupError` when the tool is missing, fails, or takes longer than `timeout_s` seconds (it is then killed
    together with its children).
    """
    words = [str(part) for part in argv]
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=tool_environment() | (env or {}),
            start_new_session=True,  # a session of its own has no terminal to ask questions on
        )
    except OSError as error:
        raise SetupError(f"{doing} failed: cannot run {words[0]} ({error.strerror}).", hint=hint) from error
    lines: deque[str] = deque()
    finished = False
    try:
        finished = _read_until_end(process, lines, on_line, time.monotonic() + timeout_s)
    finally:
        if not finished:
            _kill_group(process)
    output = "".join(lines)
    if not finished:
        raise SetupError(
            f"{doing} failed: {words[0]} was not done after {timeout_s:.0f} s.\n{last_words(output)}".rstrip(),
            hint=hint or "The network or the disk may be too slow; running `tenure setup` again continues.",
            details={"argv": words, "output": last_words(output)},
        )
    if process.returncode != 0:
        raise SetupError(
            f"{doing} failed: {words[0]} ended with code {process.returncode}.\n{last_words(output)}".rstrip(),
            hint=hint,
            details={"argv": words, "exit_code": process.returncode, "output": last_words(output)},
        )
    return output


def succeeds(argv: Sequence[str | Path], *, timeout_s: float) -> bool:
    """Whether a probing command ends with code 0; never raises."""
    try:
        run(argv, doing="Probing", timeout_s=timeout_s)
    except SetupError:
        return False
    return True


def last_words(output: str) -> str:
    """The end of a tool's output, short enough for an error message."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    return "\n".join(lines[-LAST_WORDS_LINES:])[-LAST_WORDS_CHARS:]


def _read_until_end(
    process: subprocess.Popen[bytes],
    lines: deque[str],
    on_line: Callable[[str], None] | None,
    deadline: float,
) -> bool:
    """Collects output until the process has ended; False at the deadline."""
    incoming: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    stdout = process.stdout
    assert stdout is not None

    def read() -> None:
        for line in stdout:
            incoming.put(line)
        incoming.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = incoming.get(timeout=left)
        except queue.Empty:
            return False
        if line is None:
            break
        text = line.decode(errors="replace")
        lines.append(text)
        if on_line:
            on_line(text.rstrip("\n"))
    try:
        process.wait(timeout=max(deadline - time.monotonic(), 0.001))
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # SIGTERM first: mmdebstrap unmounts what it mounted when it is asked to end.
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=KILL_WAIT_S)
            if sign is signal.SIGKILL:
                return
