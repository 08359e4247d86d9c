"""The door's wire format, as bytes in and bytes out. `officed/officed.h` describes it; both ends must agree.

What comes out of an office is untrusted: sizes are checked before anything is read, and text is decoded with replacement.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tenure.errors import TooLarge

REQUEST_BYTES_MAX = 2 << 20
FRAME_BYTES_MAX = 1 << 18
STDIN_CHUNK_BYTES = 1 << 16
ARGS_MAX = 4096

_FIELD = struct.Struct(">cI")
HEADER = struct.Struct(">cI")

STDIN, STDIN_END, RESIZE, SIGNAL = b"0", b"e", b"w", b"s"
STARTED, STDOUT, STDERR, EXIT, JOB, FORWARDS, ERROR = b"p", b"1", b"2", b"x", b"j", b"f", b"!"


@dataclass(frozen=True)
class DoorRequest:
    """One request to `officed`. `argv` empty means the user's login shell; `tty` is (rows, columns)."""

    op: str
    key: str | None = None
    argv: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None
    tty: tuple[int, int] | None = None
    timeout_s: float | None = None
    wait_s: float | None = None
    hosts: str | None = None

    def encode(self) -> bytes:
        """The request's bytes, length included. Raises `TooLarge`, and `ValueError` on a NUL (callers check their input)."""
        parts = [_text(b"o", self.op)]
        for tag, value in ((b"k", self.key), (b"d", self.cwd), (b"u", self.user), (b"h", self.hosts)):
            if value is not None:
                parts.append(_text(tag, value))
        if self.tty is not None:
            parts.append(_text(b"t", f"{self.tty[0]} {self.tty[1]}"))
        if self.timeout_s is not None:
            parts.append(_text(b"T", str(max(1, int(self.timeout_s * 1000)))))
        if self.wait_s is not None:
            parts.append(_text(b"w", str(max(0, int(self.wait_s * 1000)))))
        if len(self.argv) > ARGS_MAX or len(self.env) > ARGS_MAX:
            raise TooLarge(f"A command may have {ARGS_MAX} arguments and as many environment variables.")
        parts += [_text(b"a", argument) for argument in self.argv]
        parts += [_text(b"e", f"{name}={value}") for name, value in self.env.items()]
        body = b"".join(parts)
        if len(body) > REQUEST_BYTES_MAX:
            raise TooLarge(
                f"The command with its arguments and environment is {len(body)} bytes; {REQUEST_BYTES_MAX} are allowed.",
                hint="Put the data into a file of the office (`tenure cp`) or pipe it to the command's standard input.",
            )
        return struct.pack(">I", len(body)) + body


def _text(tag: bytes, value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError("a NUL byte cannot be passed to a command")
    return _FIELD.pack(tag, len(data)) + data


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame towards the office."""
    return HEADER.pack(kind, len(payload)) + payload
