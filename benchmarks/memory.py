"""What a process takes of the machine's memory."""

from __future__ import annotations

from pathlib import Path


def pss_mib(pid: int | str = "self") -> float:
    """MiB, with what it shares counted in proportion."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
