"""A command's streams over a WebSocket: what `tenure exec`, `shell`, `sql` and `ssh-proxy` stand on.

Blocking, two threads at most: one may send while another receives. Needs neither httpx nor pydantic, because the start
of `tenure exec` is paid at every call. The frames are described in `tenure.wire.AttachRequest` and in `Channel`.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, cast
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect, unix_connect

from tenure.client.endpoint import Endpoint
from tenure.errors import CommandTimeout, InternalError, ServerUnreachable, TenureError, TooLarge, from_payload
from tenure.names import check_name

OPEN_S = 15.0
FRAME_BYTES_MAX = 1024 * 1024
CHUNK_BYTES = 64 * 1024
SEND_BUFFER_BYTES = 256 * 1024
"""The kernel calls a connection writable that has a third of this free: enough for a chunk."""
REQUEST_BYTES_MAX = 1024 * 1024
"""Arguments, script and environment of one command together."""


class Channel(IntEnum):
    """First byte of a binary frame."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    RESIZE = 3
    """Text "rows cols"."""
    STDIN_EOF = 4
    SIGNAL = 5
    """The signal's number as text."""


_Connect = Callable[..., ClientConnection]
"""What the library's functions are; their own annotations leave parts open."""


@dataclass(frozen=True)
class AttachRequest:
    """The plain twin of `tenure.wire.AttachRequest`, which says what the fields mean. `tty` is (rows, cols)."""

    argv: list[str] | None = None
    script: str | None = None
    login: bool = False
    env: dict[str, str] = field(default_factory=dict[str, str])
    cwd: str | None = None
    user: str = "agent"
    tty: tuple[int, int] | None = None

    def to_json(self) -> str:
        body: dict[str, Any] = {"env": self.env, "user": self.user}
        if self.argv is not None:
            body["argv"] = self.argv
        if self.script is not None:
            body["script"] = self.script
        if self.login:
            body["login"] = True
        if self.cwd is not None:
            body["cwd"] = self.cwd
        if self.tty is not None:
            body["tty"] = {"rows": self.tty[0], "cols": self.tty[1]}
        return json.dumps(body)


def open_websocket(endpoint: Endpoint, path: str) -> ClientConnection:
    """A connection, to be used in `with`. Raises what the server answered, or `ServerUnreachable`."""
    options: dict[str, Any] = {
        "additional_headers": endpoint.headers,
        "compression": None,  # The bytes never leave the machine: compressing them costs more than it saves.
        "max_size": FRAME_BYTES_MAX,
        "open_timeout": OPEN_S,
        "ping_interval": None,  # A server that dies closes the connection; one that is busy must not be taken for dead.
        "close_timeout": 2.0,
    }
    try:
        if endpoint.socket is not None:
            opened = cast(_Connect, unix_connect)(str(endpoint.socket), f"ws://tenure{path}", **options)
        else:
            address = urlsplit(endpoint.url)
            scheme = "wss" if address.scheme == "https" else "ws"
            url = f"{scheme}://{address.netloc}{address.path}{path}"
            opened = cast(_Connect, connect)(url, proxy=None, **options)
        opened.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        return opened
    except InvalidStatus as error:
        raise refusal(error, endpoint) from error
    except (OSError, InvalidHandshake, InvalidURI) as error:
        raise endpoint.unreachable(error) from error


def has_room(websocket: ClientConnection, wait_s: float) -> bool:
    """Whether a chunk can be sent without waiting for the other side; waits for that. True for a broken connection, too:
    sending tells. To be asked before each chunk: while the library waits in `send` it receives nothing, and a command
    that cannot write its output reads no input, so that both would wait for ever."""
    number = websocket.socket.fileno()
    if number < 0:
        return True
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return bool(poll.poll(wait_s * 1000))


def refusal(error: InvalidStatus, endpoint: Endpoint) -> TenureError:
    """What the server answered instead of opening a WebSocket."""
    response = error.response
    try:
        return from_payload(json.loads(response.body or b""))
    except (ValueError, AttributeError):
        return InternalError(f"{endpoint} answered with HTTP {response.status_code}.")


class Attachment:
    """One running command. `receive` until `exit_code` is known; use as a context manager."""

    def __init__(self, endpoint: Endpoint, agent: str, request: AttachRequest) -> None:
        """Connects and starts the command. Raises `TooLarge`, `InvalidName`, or what the server answered."""
        text = request.to_json()
        if len(text) > REQUEST_BYTES_MAX:
            raise TooLarge(
                f"The command and its arguments take {len(text)} bytes; at most {REQUEST_BYTES_MAX} are possible.",
                hint="Send long data through stdin or a file (`tenure cp`).",
            )
        self.exit_code: int | None = None
        """Set when the command has ended: 128 + signal for one that was ended by a signal."""
        self._open = contextlib.ExitStack()
        self._ws = self._open.enter_context(open_websocket(endpoint, f"/v1/agents/{check_name(agent)}/attach"))
        self._ws.send(text)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def close(self) -> None:
        """Ends the connection, and with it a command that still runs. May be called from any thread, and twice."""
        self._ws.close()

    def receive(self) -> tuple[Channel, bytes] | None:
        """The next piece of output; None when the command has ended. Raises the server's error, or `ServerUnreachable`
        when the connection broke."""
        while self.exit_code is None:
            try:
                frame = self._ws.recv()
            except ConnectionClosed as error:
                raise ServerUnreachable(
                    "The connection to the command broke: the server or the office went away.",
                    hint="`tenure status` and `tenure logs AGENT` say more; `tenure run` is for work that lasts.",
                    details={"sent": True},
                ) from error
            if isinstance(frame, bytes):
                if frame:
                    return Channel(frame[0]), frame[1:]
                continue
            self._end(frame)
        return None

    def _end(self, frame: str) -> None:
        message = json.loads(frame)
        if message.get("error"):
            raise from_payload(message)
        if "exit_code" in message:
            self.exit_code = int(message["exit_code"])

    def has_room(self, wait_s: float) -> bool:
        """Whether `send_stdin` of a chunk would not block; waits for that."""
        return has_room(self._ws, wait_s)

    def send_stdin(self, data: bytes) -> None:
        """`data` are at most `CHUNK_BYTES`, and there is room for them."""
        self._send(Channel.STDIN, data)

    def end_stdin(self) -> None:
        self._send(Channel.STDIN_EOF, b"")

    def resize(self, rows: int, cols: int) -> None:
        self._send(Channel.RESIZE, f"{rows} {cols}".encode())

    def signal(self, number: int) -> None:
        self._send(Channel.SIGNAL, str(number).encode())

    def _send(self, channel: Channel, data: bytes) -> None:
        with contextlib.suppress(ConnectionClosed):  # `receive` is where that is told, with its reason.
            self._ws.send(bytes([channel]) + data)


def timed_out(timeout_s: float) -> CommandTimeout:
    return CommandTimeout(f"The command was ended after {timeout_s:g} s.", hint="Allow it more with --timeout.")
