"""The few messages of PostgreSQL's protocol (version 3) that Tenure reads and writes itself. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass

SSL_REQUEST = 80877103
GSSENC_REQUEST = 80877104
CANCEL_REQUEST = 80877102
PROTOCOL_3_0 = 3 << 16
STARTUP_BYTES_MAX = 10_000
"""PostgreSQL's own limit on a startup packet."""

_LENGTH = struct.Struct("!I")
_COPY_DATA = ord("d")
_ERROR_FIELDS = {"S": "severity", "C": "sqlstate", "M": "message", "D": "detail", "H": "hint", "P": "position"}


class ProtocolError(ValueError):
    """The peer does not speak this protocol."""


@dataclass(frozen=True)
class Startup:
    """The first message of a connection. `code` is one of the request constants or a protocol version; `parameters` are
    there for the latter only. `length` bytes of the buffer belong to it."""

    code: int
    length: int
    parameters: dict[str, str]


def parse_startup(buffer: bytes | bytearray) -> Startup | None:
    """The startup message at the head of `buffer`; None while it is incomplete. Raises `ProtocolError`."""
    if len(buffer) < 8:
        return None
    length, code = struct.unpack_from("!II", buffer)
    if not 8 <= length <= STARTUP_BYTES_MAX:
        raise ProtocolError("invalid length of startup packet")
    if len(buffer) < length:
        return None
    if code in (SSL_REQUEST, GSSENC_REQUEST, CANCEL_REQUEST):
        return Startup(code, length, {})
    if code >> 16 != 3:
        raise ProtocolError(f"unsupported frontend protocol {code >> 16}.{code & 0xFFFF}")
    body = bytes(buffer[8:length])
    if not body.endswith(b"\0"):
        raise ProtocolError("invalid startup packet layout: expected terminator as last byte")
    words = body[:-1].split(b"\0")
    if words and words[-1] == b"":
        words.pop()
    if len(words) % 2:
        raise ProtocolError("invalid startup packet layout: a parameter has no value")
    texts = [word.decode("utf-8", "surrogateescape") for word in words]
    parameters: dict[str, str] = {}
    for name, value in zip(texts[::2], texts[1::2], strict=True):
        if name in parameters:  # PostgreSQL takes the last: never let a checker and the server read different ones
            raise ProtocolError(f"startup parameter {name} is given twice")
        parameters[name] = value
    return Startup(code, length, parameters)


def startup(parameters: dict[str, str], *, version: int = PROTOCOL_3_0) -> bytes:
    """A startup message."""
    body = (
        b"".join(f"{name}\0{value}\0".encode("utf-8", "surrogateescape") for name, value in parameters.items()) + b"\0"
    )
    return struct.pack("!II", len(body) + 8, version) + body


def ssl_request() -> bytes:
    return struct.pack("!II", 8, SSL_REQUEST)


def cancel_request(pid: int, secret: bytes) -> bytes:
    return struct.pack("!III", 12 + len(secret), CANCEL_REQUEST, pid) + secret


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def take_message(buffer: bytes) -> tuple[bytes, bytes, bytes] | None:
    """(kind, body, what comes after) of the message at the head of `buffer`; None while it is incomplete."""
    if len(buffer) < 5:
        return None
    end = 1 + max(4, int.from_bytes(buffer[1:5], "big"))
    return None if len(buffer) < end else (buffer[:1], buffer[5:end], buffer[end:])


def copy_data_end(buffer: bytes, left: int) -> tuple[int, int]:
    """How far `buffer` is CopyData messages, of whose first one only the last `left` bytes are in it; and how many bytes of
    the last one are still to come."""
    at, size = left, len(buffer)
    while at + 5 <= size and buffer[at] == _COPY_DATA:
        at += 1 + max(4, _LENGTH.unpack_from(buffer, at + 1)[0])
    return min(at, size), max(0, at - size)


def query(text: str) -> bytes:
    return message(b"Q", text.encode() + b"\0")


def error_response(sqlstate: str, text: str, *, hint: str = "", severity: str = "FATAL") -> bytes:
    """An ErrorResponse as the server would send it."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": text, "H": hint}
    body = b"".join(f"{key}{value}\0".encode() for key, value in fields.items() if value) + b"\0"
    return message(b"E", body)


def parse_error(body: bytes) -> dict[str, str]:
    """Fields of an ErrorResponse under their names: severity, sqlstate, message, detail, hint, position."""
    found: dict[str, str] = {}
    for field in body.split(b"\0"):
        name = _ERROR_FIELDS.get(field[:1].decode("latin-1"))
        if name:
            found[name] = field[1:].decode("utf-8", "replace")
    return found


def parse_columns(body: bytes) -> list[tuple[str, int]]:
    """(name, type oid) of each column of a RowDescription."""
    (count,) = struct.unpack_from("!H", body)
    columns: list[tuple[str, int]] = []
    at = 2
    for _ in range(count):
        end = body.index(b"\0", at)
        (oid,) = struct.unpack_from("!I", body, end + 7)
        columns.append((body[at:end].decode("utf-8", "replace"), oid))
        at = end + 19
    return columns


def parse_row(body: bytes) -> list[bytes | None]:
    """The values of a DataRow, as sent (text format here)."""
    (count,) = struct.unpack_from("!H", body)
    values: list[bytes | None] = []
    at = 2
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        if length < 0:
            values.append(None)
        else:
            values.append(body[at : at + length])
            at += length
    return values
