"""One HTTP request from inside the office. Sent there as text; see `__init__.py`."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from tenure.brains.tools.inside.told import EXIT_REFUSED, EXIT_UNKNOWN, main, refuse, say

BODY_BYTES_MAX = 4 * 1024 * 1024
BODY_CHARS_MAX = 24_000
HEADERS_CHARS_MAX = 3000
NEIGHBOURS = frozenset({"localhost", "db", "s3", "api", "egress"})
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Asking twice does no harm."""


def request(wanted: dict[str, Any]) -> None:
    url: str = wanted["url"]
    method: str = wanted["method"]
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        refuse(f"{url[:200]} is not an address: it begins with http:// or https:// and a host.")
    headers = dict(map(_header, wanted["headers"]))
    body = wanted["body"].encode() if wanted["body"] else None
    asked = urllib.request.Request(url, data=body, headers=headers, method=method)
    handlers = [urllib.request.ProxyHandler({})] if _is_inside(parts.hostname) else []
    try:
        with urllib.request.build_opener(*handlers).open(asked, timeout=wanted["timeout_s"]) as answer:
            _tell(answer)
    except urllib.error.HTTPError as error:
        _tell(error)
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        _tell_failure(method, parts.hostname, error)


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip() or "\n" in line or "\r" in line:
        refuse(f"{line[:80]!r} is not a header: write each as 'Name: value'.")
    return name.strip(), value.strip()


def _is_inside(host: str) -> bool:
    try:
        return host in NEIGHBOURS or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tell(answer: Any) -> None:
    data = answer.read(BODY_BYTES_MAX + 1)
    kind = answer.headers.get_content_type()
    head = "".join(f"{name}: {value}\n" for name, value in answer.headers.items())[:HEADERS_CHARS_MAX]
    charset = answer.headers.get_content_charset() or "utf-8"
    try:
        text = data.decode(charset, "replace")
    except LookupError:
        text = data.decode("utf-8", "replace")
    if b"\0" in data:
        text = f"({len(data)} bytes of {kind}, which is not text: to keep it, use curl -o by shell)"
    elif len(text) > BODY_CHARS_MAX:
        missing = "more than" if len(data) > BODY_BYTES_MAX else ""
        text = f"{text[:BODY_CHARS_MAX]}\n[… cut: {missing} {len(data)} bytes in all; to have the whole, use curl -o by shell]"
    told = f"HTTP {answer.status} {answer.reason}\n{head}\n{text}"
    say(told) if answer.status < 400 else refuse(told)


def _tell_failure(method: str, host: str, error: Exception) -> None:
    reason: Any = getattr(error, "reason", error)
    if "403" in str(reason) and "unnel" in str(reason):
        refuse(f"The office's egress does not allow {host}. Its owner decides what the office may reach.")
    never_sent = isinstance(reason, (ConnectionRefusedError, socket.gaierror)) or "unnel" in str(reason)
    told = f"No answer from {host}: {reason}."
    if never_sent or method in SAFE:
        refuse(told, EXIT_REFUSED)
    refuse(f"{told} Whether the request took effect there is not known: ask before it is sent again.", EXIT_UNKNOWN)


if __name__ == "__main__":
    main(request)
