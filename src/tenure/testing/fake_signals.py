"""Signals of programs without a server, for `FakeHands`: kept in files, told over a small HTTP server of this process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import threading
from collections.abc import Callable, Coroutine, Generator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue, ValidationError

from tenure import wire
from tenure.errors import NotFound, TenureError
from tenure.work.hands import Signals
from tenure.work.signals import check_checkpoint

T = TypeVar("T")
POLL_S = 0.02
NO_CONTENT, BAD_REQUEST = 204, 422


class FileSignals:
    """As `tenure.work.signals.SignalStore`, in `root`/AGENT/signals/KEY. Several processes may share it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def open(self, agent: str, key: str, checkpoint: JsonValue = None) -> None:
        check_checkpoint(checkpoint)
        file = self._root / agent / "signals" / key
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), file.open("x") as fresh:
            json.dump(asdict(Signals(checkpoint=checkpoint)), fresh)

    async def read(self, agent: str, key: str) -> Signals:
        with self._locked(agent, key) as file:
            return Signals(**json.loads(file.read_text()))

    async def beat(self, agent: str, key: str, every_s: float | None = None) -> None:
        self.change(agent, key, lambda s: replace(s, heartbeats=s.heartbeats + 1, heartbeat_s=every_s or s.heartbeat_s))

    async def keep(self, agent: str, key: str, checkpoint: JsonValue) -> None:
        check_checkpoint(checkpoint)
        self.change(agent, key, lambda s: replace(s, checkpoint=checkpoint, checkpoints=s.checkpoints + 1))

    async def progress(self, agent: str, key: str, text: str) -> None:
        self.change(agent, key, lambda s: replace(s, progress=text, progresses=s.progresses + 1))

    async def spend(self, agent: str, key: str, usage: wire.UsageRequest) -> None:
        self.change(agent, key, lambda s: replace(s, usage=usage.model_dump(mode="json")))

    async def ask(self, agent: str, key: str, question: wire.ProgramQuestion) -> None:
        self.change(agent, key, lambda s: replace(s, question=question.model_dump(mode="json")))

    def change(self, agent: str, key: str, change: Callable[[Signals], Signals]) -> None:
        with self._locked(agent, key) as file:
            found = change(Signals(**json.loads(file.read_text())))
            file.write_text(json.dumps(asdict(replace(found, beats=found.beats + 1))))

    @contextlib.contextmanager
    def _locked(self, agent: str, key: str) -> Generator[Path]:
        file = self._root / agent / "signals" / key
        if not file.is_file():
            raise NotFound(f"No program of this agent works under the key {key!r}.")
        with file.open() as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            yield file


class SignalServer:
    """`/AGENT/work/KEY/…` on a port of the loopback, as an office finds it at `api:8700`. It dies with this process."""

    def __init__(self, signals: FileSignals) -> None:
        class Handler(_Handler):
            store = signals

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(POLL_S,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    store: FileSignals

    def do_GET(self) -> None:
        self._answer()

    do_PUT = do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        return

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            agent, _, key, what = self.path.strip("/").split("/")
            told = self._tell(agent, key, f"{self.command} {what}", body)
            status = 200 if told else NO_CONTENT
        except TenureError as error:
            status, told = error.http_status, json.dumps(error.to_payload()).encode()
        except (ValueError, ValidationError) as error:
            status, told = BAD_REQUEST, str(error).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def _tell(self, agent: str, key: str, what: str, body: bytes) -> bytes:
        match what:
            case "PUT checkpoint":
                _run(self.store.keep(agent, key, json.loads(body)))
            case "GET checkpoint":
                found = _run(self.store.read(agent, key))
                if found.checkpoint is None:
                    raise NotFound("There is no checkpoint yet.")
                return json.dumps(found.checkpoint).encode()
            case "POST heartbeat":
                every_s = wire.HeartbeatRequest.model_validate_json(body).every_s if body else None
                _run(self.store.beat(agent, key, every_s))
            case "POST progress":
                _run(self.store.progress(agent, key, wire.ProgressRequest.model_validate_json(body).text))
            case "PUT usage":
                _run(self.store.spend(agent, key, wire.UsageRequest.model_validate_json(body)))
            case "POST ask":
                _run(self.store.ask(agent, key, wire.ProgramQuestion.model_validate_json(body)))
            case _:
                raise NotFound(f"There is no {what}.")
        return b""


def _run(call: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        call.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError("it waited")
