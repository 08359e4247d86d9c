"""What a memory image of gVisor is bound to, found out when a sandbox starts.

gVisor checks little of it: it restores over a changed root, and with another `officed` under the old one's memory, without
a word. So all of it is compared here, before anything is started.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenure.errors import SetupError
from tenure.offices.sandboxes.base import SandboxSpec
from tenure.offices.sandboxes.images import Fit
from tenure.offices.tools import TOOL_PATH

CPU_FIELDS = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU implementer", "CPU part")


def fit_of(spec: SandboxSpec, configuration: dict[str, Any], flags: Sequence[str], binding: str) -> Fit:
    """Reads the programs that matter; those that it has seen are known by inode, size and times. Raises `SetupError`."""
    runsc = shutil.which("runsc", path=TOOL_PATH)
    if runsc is None:
        raise SetupError("The program runsc is not installed.")
    sandbox = [configuration, spec.limits.cpus, list(flags), _hash_of(spec.officed_dir / "officed")]
    return Fit(
        binding=binding,
        runtime=_hash_of(Path(runsc)),
        cpu=_cpu(),
        sandbox=hashlib.sha256(json.dumps(sandbox, sort_keys=True).encode()).hexdigest(),
    )


def _hash_of(path: Path) -> str:
    status = os.stat(path)
    return _hash(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@functools.lru_cache(maxsize=8)
def _hash(path: Path, _identity: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _cpu() -> str:
    """Of the first processor: what programs in memory may have found out and rely on."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    return hashlib.sha256(json.dumps([fields.get(name) for name in CPU_FIELDS]).encode()).hexdigest()
