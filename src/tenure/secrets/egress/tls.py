"""Reading which server a TLS client asks for, from the first bytes that it sends. Pure."""

from __future__ import annotations

HELLO_BYTES_MAX = 64 * 1024
_HANDSHAKE = 0x16
_CLIENT_HELLO = 1
_SERVER_NAME = 0


class Incomplete(Exception):
    """The ClientHello has not arrived whole."""


def server_name(data: bytes) -> str | None:
    """The server name of the ClientHello at the head of `data`; None when it names none or is no TLS. Raises `Incomplete`
    when more bytes are needed to tell."""
    if not data:
        raise Incomplete
    if data[0] != _HANDSHAKE:
        return None
    hello = _handshake(data)
    try:
        return _find(hello) if hello is not None else None
    except (IndexError, ValueError):
        return None  # malformed: the server will refuse it


def _handshake(data: bytes) -> bytes | None:
    """The body of the first handshake message, put together from the records that it is split over."""
    message, at = b"", 0
    while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4], "big"):
        if len(data) < at + 5:
            raise Incomplete
        if data[at] != _HANDSHAKE:
            return None
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if len(data) < at + 5 + length:
            raise Incomplete
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if length == 0 or len(message) > HELLO_BYTES_MAX:
            return None
    if message[0] != _CLIENT_HELLO:
        return None
    return message[4 : 4 + int.from_bytes(message[1:4], "big")]


def _find(hello: bytes) -> str | None:
    at = 2 + 32  # version, random
    at += 1 + hello[at]  # session id
    at += 2 + int.from_bytes(hello[at : at + 2], "big")  # cipher suites
    at += 1 + hello[at]  # compression methods
    end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 2
    while at + 4 <= min(end, len(hello)):
        kind, length = int.from_bytes(hello[at : at + 2], "big"), int.from_bytes(hello[at + 2 : at + 4], "big")
        if kind == _SERVER_NAME:
            # list length (2), type (1), name length (2), name
            name_length = int.from_bytes(hello[at + 7 : at + 9], "big")
            return hello[at + 9 : at + 9 + name_length].decode("ascii")
        at += 4 + length
    return None
