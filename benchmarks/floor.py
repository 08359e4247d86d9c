"""The floor: what bare runsc takes for the same thing, with no Tenure about it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

RUNSC_TIMEOUT_S = 60
CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"]


class BareRunsc:
    """`runsc run` and `runsc exec` on a root of its own, with the flags that Tenure's driver uses and no limits."""

    def __init__(self, root: Path) -> None:
        self._dir = Path(tempfile.mkdtemp(prefix="tenure-bench-"))
        self._runsc = [
            "runsc", "--root", str(self._dir / "state"), "--platform=systrap", "--network=none", "--overlay2=none",
            "--ignore-cgroups",
        ]  # fmt: skip
        bundle = self._dir / "bundle"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(_config(root)))
        self._count = 0

    @property
    def id(self) -> str:
        return f"floor-{self._count}"

    def run_and_exec(self) -> float:
        """Seconds from `runsc run` to the end of the first `runsc exec`."""
        self._count += 1
        began = time.perf_counter()
        self._call("run", "--detach", "--bundle", str(self._dir / "bundle"), self.id)
        self._call("exec", self.id, "/bin/true")
        return time.perf_counter() - began

    def exec(self) -> float:
        """Seconds of one `runsc exec` of /bin/true."""
        began = time.perf_counter()
        self._call("exec", self.id, "/bin/true")
        return time.perf_counter() - began

    def restore_and_exec(self) -> float:
        """Seconds from `runsc restore` of a sandbox's memory image to the end of the first `runsc exec`. It ends the sandbox."""
        image = self._dir / "image"
        shutil.rmtree(image, ignore_errors=True)
        self.run_and_exec()
        self._call("checkpoint", "--compression=none", f"--image-path={image}", self.id)
        self.delete()
        self._count += 1
        began = time.perf_counter()
        words = ["restore", "--detach", "--bundle", str(self._dir / "bundle"), f"--image-path={image}", self.id]
        self._call(*words)
        self._call("exec", self.id, "/bin/true")
        took_s = time.perf_counter() - began
        self.delete()
        return took_s

    def resume_and_exec(self) -> float:
        """Seconds from `runsc resume` of the paused sandbox to the end of the first `runsc exec`."""
        self._call("pause", self.id)
        began = time.perf_counter()
        self._call("resume", self.id)
        self._call("exec", self.id, "/bin/true")
        return time.perf_counter() - began

    def pids(self) -> list[int]:
        """The processes of all sandboxes that run."""
        state = str(self._dir).encode()
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and state in _command(entry):
                found.append(int(entry.name))
        return found

    def delete(self) -> None:
        self._call("delete", "--force", self.id)

    def close(self) -> None:
        shutil.rmtree(self._dir, ignore_errors=True)

    def _call(self, *arguments: str) -> None:
        with (self._dir / "log").open("ab") as log:  # never a pipe that `run --detach` would keep open
            subprocess.run(
                [*self._runsc, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True,
                timeout=RUNSC_TIMEOUT_S,
            )  # fmt: skip


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def _config(root: Path) -> dict[str, object]:
    return {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/usr/bin/tini", "-s", "--", "/bin/sleep", "100000"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
        },
        "root": {"path": str(root), "readonly": False},
        "hostname": "floor",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }
