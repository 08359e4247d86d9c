"""What a parser gives up before it looks at a file: root, network, and all but a little memory, time and disk.

A parser reads what anybody sent. Should a file take it over, it is a process with no user of its own, no capability and no way to
gain one, no network, and no file system but the directory with the file that it was given; and two pipes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from dataclasses import asdict, dataclass, fields
from typing import Any

UID_FIRST = 208_000
"""Users of parsers, one for each that runs at the same time: no office's, nobody's."""
MEMORY_BYTES_MAX = 128 * 1024**2
"""For what it reads. What the program itself takes (about 60 MB) it has before it enters its control group."""
ADDRESS_BYTES_MAX = 4 * 1024**3
"""Where there is no control group, this and the next one bound a parser."""
DATA_BYTES_MAX = 1024**3
CPU_S_MAX = 1800
FILE_BYTES_MAX = 4 * 1024**3
OPEN_FILES_MAX = 64
PROCESSES_MAX = 16
_CLONE_NEWNET, _CLONE_NEWIPC, _CLONE_NEWNS = 0x40000000, 0x08000000, 0x00020000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PR_CAPBSET_DROP = 24
_CAPABILITIES = 64


@dataclass(frozen=True)
class Jail:
    """`uid` 0: nothing is given up but what needs no privilege, on a machine where the server is not root either."""

    uid: int = 0
    root: str = ""
    """Becomes the root directory, with `uid` only."""
    procs: tuple[str, ...] = ()
    """Files to enter control groups by."""
    address_bytes: int = ADDRESS_BYTES_MAX
    data_bytes: int = DATA_BYTES_MAX
    cpu_s: int = CPU_S_MAX
    file_bytes: int = FILE_BYTES_MAX

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def jail_from(found: dict[str, Any]) -> Jail:
    values = {one.name: found[one.name] for one in fields(Jail)}
    values["procs"] = tuple(found["procs"])
    return Jail(**values)


def enter(jail: Jail) -> None:
    """Of the calling process, for good. Raises `OSError` when something of it is not to be had."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    for path in jail.procs:
        with open(path, "w") as file:
            file.write(str(os.getpid()))
    if jail.uid:
        _check(libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC))
        for number in range(_CAPABILITIES):
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
        os.chroot(jail.root)
        os.chdir("/")
        os.setgroups([])
        os.setresgid(jail.uid, jail.uid, jail.uid)
    for what, most in (
        (resource.RLIMIT_AS, jail.address_bytes),
        (resource.RLIMIT_DATA, jail.data_bytes),
        (resource.RLIMIT_CPU, jail.cpu_s),
        (resource.RLIMIT_FSIZE, jail.file_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES_MAX),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
    if jail.uid:
        resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES_MAX, PROCESSES_MAX))
        os.setresuid(jail.uid, jail.uid, jail.uid)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))  # or its own /proc/self is not its own
    _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:  # it ended before it could be followed
        os.kill(os.getpid(), signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.nice(5)


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
