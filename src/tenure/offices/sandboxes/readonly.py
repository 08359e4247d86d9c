"""Runs a program in a mount namespace of its own, in which some directories are read-only whatever the program does.

Why: of a bind mount that the OCI configuration calls read-only, runsc makes an ordinary one on the host and refuses writes
inside. It truncates first: with runsc 20240729 `echo > /.tenure/bin/officed` in one office empties the host's file, which all
offices start from (found by the conformance kit). Read-only for the host's kernel holds against that, and against
a gVisor that was broken out of. It costs 0.1 ms done here; with `unshare` and `mount` as programs it costs 13 ms.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tenure.errors import SandboxError, SetupError
from tenure.offices.tools import tool_environment

CLONE_NEWNS = 0x20000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_SLAVE = 1, 2, 4, 32, 4096, 16384, 1 << 19

_libc = ctypes.CDLL(None, use_errno=True)


async def run_with_read_only(directories: Sequence[Path], argv: Sequence[str], *, timeout_s: float) -> int:
    """Exit code of `argv`, which sees `directories` read-only; its stdio is /dev/null. Raises `SetupError` when the program is
    missing, `SandboxError` when it took longer than `timeout_s` seconds or when this process may not mount. A cancelled
    caller waits for the program's end: what it half made can only then be cleaned up."""
    # A thread of its own, used once: the namespace is the thread's, and must not meet other work.
    with ThreadPoolExecutor(1, thread_name_prefix="mounts") as thread:
        running = asyncio.get_running_loop().run_in_executor(thread, _run, directories, argv, timeout_s)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise


def _run(directories: Sequence[Path], argv: Sequence[str], timeout_s: float) -> int:
    try:
        _call(_libc.unshare, CLONE_NEWNS)
        _call(_libc.mount, b"none", b"/", None, MS_REC | MS_SLAVE, None)  # nothing that we mount is seen outside
        for directory in directories:
            path = os.fsencode(directory)
            _call(_libc.mount, path, path, None, MS_BIND, None)
            _call(_libc.mount, b"none", path, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV, None)
    except OSError as error:
        raise SandboxError(
            f"The host's directories cannot be protected from a sandbox: {error}.", hint="Does the server run as root?"
        ) from error
    null = subprocess.DEVNULL
    try:
        return subprocess.run(
            argv, stdin=null, stdout=null, stderr=null, env=tool_environment(), timeout=timeout_s, check=False
        ).returncode
    except FileNotFoundError as error:
        raise SetupError(f"The program {argv[0]} is not installed.") from error
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"{argv[0]} was not done after {timeout_s:.0f} s.") from error


def _call(function: ctypes._NamedFuncPointer, *arguments: bytes | int | None) -> None:  # pyright: ignore[reportPrivateUsage]
    if function(*arguments):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
