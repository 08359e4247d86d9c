"""Reads a web page's form, multipart/form-data, as it comes: small fields first, then one file, which is never held."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass

from tenure.data.s3.errors import S3Error

FIELDS_MAX = 100
FIELDS_BYTES_MAX = 64 * 1024
BOUNDARY_CHARS_MAX = 200
_BOUNDARY = re.compile(r'multipart/form-data\s*;.*?boundary=(?:"([^"]+)"|([^\s;,]+))', re.IGNORECASE)
_PARAMETER = re.compile(r';\s*(name|filename)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)


@dataclass(frozen=True)
class Form:
    """`fields` are named in lower case. `file` is read once."""

    fields: Mapping[str, str]
    filename: str
    file: AsyncIterator[bytes]


def boundary_of(content_type: str) -> bytes:
    """Empty for what is no form."""
    match = _BOUNDARY.match(content_type)
    text = (match[1] or match[2]) if match else ""
    return text.encode("latin-1", "replace") if len(text) <= BOUNDARY_CHARS_MAX else b""


async def read_form(body: AsyncIterator[bytes], boundary: bytes) -> Form:
    """Reads as far as to the file's first byte. Raises `S3Error`."""
    reader = _Reader(body)
    if (await reader.until(b"--" + boundary)).strip(b"\r\n"):
        raise S3Error("MalformedPOSTRequest")
    fields: dict[str, str] = {}
    while True:
        if await reader.take(2) != b"\r\n":
            raise S3Error("InvalidArgument", "POST requires exactly one file upload per request.")
        head = (await reader.until(b"\r\n\r\n")).decode("utf-8", "replace")
        names = _names(head)
        name = names.get("name", "").lower()
        if name == "file":
            content_type = re.search(r"^content-type:\s*(.+?)\s*$", head, re.IGNORECASE | re.MULTILINE)
            if content_type and "content-type" not in fields:
                fields["file-content-type"] = content_type[1]
            return Form(fields, names.get("filename", ""), reader.rest(b"\r\n--" + boundary))
        if not name or name in fields or len(fields) >= FIELDS_MAX:
            raise S3Error("MalformedPOSTRequest", "A form has each of its fields once, and a name for each.")
        fields[name] = (await reader.until(b"\r\n--" + boundary)).decode("utf-8", "replace")


def _names(head: str) -> dict[str, str]:
    for line in head.split("\r\n"):
        if line.lower().startswith("content-disposition:"):
            return {key.lower(): re.sub(r"\\(.)", r"\1", value) for key, value in _PARAMETER.findall(line)}
    raise S3Error("MalformedPOSTRequest")


class _Reader:
    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body, self._buffer, self._read_bytes = body, bytearray(), 0

    async def _more(self) -> bool:
        try:
            self._buffer += await anext(self._body)
        except StopAsyncIteration:
            return False
        return True

    async def take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if not await self._more():
                break
        found = bytes(self._buffer[:count])
        del self._buffer[:count]
        return found

    async def until(self, mark: bytes) -> bytes:
        """What stands before the mark, which is skipped. For small things."""
        while (place := self._buffer.find(mark)) < 0:
            if self._read_bytes + len(self._buffer) > FIELDS_BYTES_MAX:
                raise S3Error("MaxPostPreDataLengthExceeded")
            if not await self._more():
                raise S3Error("MalformedPOSTRequest", "The form ends in the middle.")
        found = bytes(self._buffer[:place])
        self._read_bytes += place
        if self._read_bytes > FIELDS_BYTES_MAX:
            raise S3Error("MaxPostPreDataLengthExceeded")
        del self._buffer[: place + len(mark)]
        return found

    async def rest(self, mark: bytes) -> AsyncGenerator[bytes]:
        """The bytes up to the mark, as they come. What follows it is read and dropped."""
        while (place := self._buffer.find(mark)) < 0:
            safe = len(self._buffer) - len(mark)
            if safe > 0:
                yield bytes(self._buffer[:safe])
                del self._buffer[:safe]
            if not await self._more():
                raise S3Error("MalformedPOSTRequest", "The form ends in the middle.")
        yield bytes(self._buffer[:place])
        self._buffer.clear()
        while await self._more():
            self._buffer.clear()
