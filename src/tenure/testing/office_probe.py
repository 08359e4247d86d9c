"""`OfficeProbe`: one sandbox under test, with an `officed` of its own that runs what a test asks and answers.

It knows nothing of a driver but the `Sandbox` contract (what is at `spec.officed_dir/officed` is started and may dial
`door.sock`), so it looks into any driver's sandboxes. It needs `python3` in the root.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenure.offices.sandboxes.base import SandboxDriver, SandboxSpec

ANSWER_TIMEOUT_S = 90.0
ANSWER_BYTES_MAX = 16 * 1024**2
CONNECTIONS = 3
OFFICED = r'''#!/usr/bin/env python3
"""Dials the door; each connection carries one request, {"script", "uid"}, and its answer, {"exit_code", "output"}."""
import json, os, signal, socket, subprocess, sys, threading, time

door, jobs = (sys.argv[sys.argv.index(flag) + 1] for flag in ("--door", "--jobs"))
os.makedirs(jobs, exist_ok=True)
env = dict(os.environ, PROBE_NOTES=jobs, PROBE_ARGV=json.dumps(sys.argv), PROBE_PID=str(os.getpid()), PROBE_DOOR=door)

def end(*_):
    with open(jobs + "/terminated", "w") as marker:
        marker.write("yes")
    os._exit(0)

signal.signal(signal.SIGTERM, end)
for name in ("exit-at-start", "ignore-sigterm"):
    if os.path.exists(jobs + "/" + name):
        os._exit(3) if name == "exit-at-start" else signal.signal(signal.SIGTERM, signal.SIG_IGN)

def answer(request):
    try:
        done = subprocess.run(["/bin/sh", "-c", request["script"]], user=request["uid"], env=env,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return {"exit_code": done.returncode, "output": done.stdout.decode(errors="replace")}
    except Exception as error:
        return {"exit_code": -1, "output": repr(error)}

def serve():
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(door)
                with line.makefile("rw") as stream:
                    stream.write(json.dumps(answer(json.loads(stream.readline()))) + "\n")
        except (OSError, ValueError):
            time.sleep(0.02)

for _ in range(CONNECTIONS):
    threading.Thread(target=serve, daemon=True).start()
while True:
    signal.pause()
'''.replace("CONNECTIONS", str(CONNECTIONS))


@dataclass(frozen=True)
class Answer:
    exit_code: int
    output: str


class OfficeProbe:
    """Opens the doorway of `spec`; `run` runs scripts inside once the sandbox is started."""

    def __init__(self, driver: SandboxDriver, spec: SandboxSpec) -> None:
        self.driver, self.spec, self.id = driver, spec, spec.id
        self._idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def notes(self) -> Path:
        """A directory of the office as the host sees it; inside it is `$PROBE_NOTES`."""
        return self.spec.root / "var/lib/tenure/jobs"

    async def open(self) -> None:
        self.spec.doorway.mkdir(parents=True, exist_ok=True)
        self.spec.officed_dir.mkdir(parents=True, exist_ok=True)
        program = self.spec.officed_dir / "officed"
        program.write_text(OFFICED)
        program.chmod(0o755)
        await self.listen()

    async def listen(self) -> None:
        """What runs inside dials again."""
        self._server = await asyncio.start_unix_server(
            self._arrived, self.spec.doorway / "door.sock", limit=ANSWER_BYTES_MAX
        )

    async def drain(self) -> None:
        """Closes the door; returns when nothing inside holds a connection. `listen` opens it again."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            lines: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
            while len(lines) < CONNECTIONS:
                line = await self._idle.get()
                if not line[0].at_eof() and not line[1].is_closing():
                    lines.append(line)
            self._stop_listening()
            for reader, writer in lines:
                writer.write_eof()
                await reader.read()
                writer.close()

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
        (self.spec.doorway / "door.sock").unlink(missing_ok=True)

    async def close(self) -> None:
        """Ends the sandbox and closes the doorway; nothing of either stays."""
        await self.driver.stop(self.id, grace_s=0)
        self._stop_listening()
        for writer in self._writers:
            writer.close()

    async def __aenter__(self) -> OfficeProbe:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self, *, image: Path | None = None, binding: str = "") -> None:
        await self.driver.start(self.spec, image=image, binding=binding)

    async def run(self, script: str, *, uid: int | None = None, timeout_s: float = ANSWER_TIMEOUT_S) -> Answer:
        """Runs `script` with `/bin/sh` inside, as root unless `uid` says otherwise. Raises `ConnectionError` when the sandbox
        died under it, `TimeoutError` when it did not answer."""
        async with asyncio.timeout(timeout_s):
            while True:
                reader, writer = await self._idle.get()
                if not reader.at_eof() and not writer.is_closing():
                    break
            writer.write(json.dumps({"script": script, "uid": uid}).encode() + b"\n")
            line = await reader.readline()
            writer.close()
        if not line:
            raise ConnectionError("The sandbox closed the connection.")
        answer: dict[str, Any] = json.loads(line)
        return Answer(int(answer["exit_code"]), str(answer["output"]))

    async def output(self, script: str, *, uid: int | None = None) -> str:
        """What a script that must succeed printed."""
        answer = await self.run(script, uid=uid)
        assert answer.exit_code == 0, f"{script!r} ended with {answer.exit_code}: {answer.output}"
        return answer.output.strip()

    async def has_dialled(self) -> None:
        """Returns when a connection from inside is there. Raises `TimeoutError`."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            self._idle.put_nowait(await self._idle.get())

    async def _arrived(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._idle.put_nowait((reader, writer))
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self._writers.discard(writer)
