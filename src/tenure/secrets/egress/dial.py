"""Connecting for an office: names are resolved here, every address is judged, and the judged address is the one dialled.

So a name cannot lead to one address when it is checked and to another when it is used.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tenure.errors import EgressDenied, EgressUnreachable
from tenure.secrets.egress.addresses import is_own, refusal
from tenure.secrets.egress.rules import Rule

RESOLVE_TIMEOUT_S = 15.0
RESOLVING_MAX = 2
"""At once and per office: the threads that resolve are few, and all offices'."""
CONNECT_TIMEOUT_S = 15.0
ADDRESSES_MAX = 6
STREAM_BYTES = 256 * 1024
PROXY_HEAD_BYTES_MAX = 64 * 1024

Resolver = Callable[[str, int], Awaitable[list[str]]]


@dataclass(frozen=True)
class Upstream:
    """The proxy that this host itself must use for a target."""

    host: str
    port: int
    authorization: str | None


@dataclass(frozen=True)
class Line:
    """An open connection. `through` is set when it ends at a proxy that has not been told the target yet."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    through: Upstream | None = None
    below: asyncio.StreamWriter | None = None
    """What an encrypted one is made on, which would be closed if it were forgotten."""


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of `host`, in the system's order. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def judge_for_office(address: str, host: str, rule: Rule) -> str | None:
    """Why an office must not be connected to `address`, to which `host` leads; None when it may."""
    own = rule.from_host and _is_loopback_name(rule.host) and rule.host == host
    reason = refusal(address, private_allowed=rule.from_host, loopback_allowed=own)
    if reason is None and not rule.from_host and is_own(address):
        return f"it leads to {address}, which is this machine itself"
    return reason


class Dialer:
    """Opens connections to addresses that `judge` lets pass. `allow_private` is for tests, whose servers are on this machine."""

    def __init__(
        self,
        *,
        allow_private: bool = False,
        resolver: Resolver = resolve,
        environment_proxies: Callable[[], dict[str, str]] = urllib.request.getproxies_environment,
        judge: Callable[[str, str, Rule], str | None] = judge_for_office,
    ) -> None:
        self._judge = judge
        self._allow_private = allow_private
        self._resolve = resolver
        self._environment_proxies = environment_proxies
        self._resolving = asyncio.Semaphore(RESOLVING_MAX)

    async def dial(self, host: str, port: int, rule: Rule, *, scheme: str) -> Line:
        """A connection to the target, for "https" (a tunnel) or "http" (one request). Raises `EgressDenied` when its name
        leads where offices do not go, `EgressUnreachable`."""
        upstream = self.upstream(scheme, host)
        addresses = await self._addresses(host, port, rule, needed=upstream is None)
        if upstream is None:
            return await _first(addresses, host, port)
        line = await self._to_upstream(upstream)
        if scheme == "https":
            await _tunnel(line, host, port)
            return Line(line.reader, line.writer)
        return line

    def upstream(self, scheme: str, host: str) -> Upstream | None:
        """This host's own proxy for a target, from its environment (`https_proxy`, `http_proxy`, `no_proxy`)."""
        proxies = self._environment_proxies()
        bypass: object = urllib.request.proxy_bypass_environment(host, proxies)  # type: ignore[call-arg]
        url = proxies.get(scheme)
        if not url or bypass:
            return None
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme != "http" or parts.hostname is None:
            raise EgressUnreachable(
                f"This host's {scheme}_proxy is {parts.scheme}://…; Tenure knows http:// proxies only."
            )
        authorization = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
        return Upstream(parts.hostname, parts.port or 80, authorization)

    async def _addresses(self, host: str, port: int, rule: Rule, *, needed: bool) -> list[str]:
        """Resolved and judged. Where a proxy of the host's resolves names, a name unknown here is left to it."""
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S), self._resolving:
                found = await self._resolve(host, port)
        except (OSError, TimeoutError, UnicodeError):
            if needed:
                raise EgressUnreachable(f"The name {host} is not known (to this host's DNS).") from None
            return []
        if not self._allow_private:
            for address in found:
                reason = await asyncio.to_thread(self._judge, address, host, rule)
                if reason is not None:
                    raise EgressDenied(f"{host}:{port} is not reached: {reason}.")
        return found[:ADDRESSES_MAX]

    async def _to_upstream(self, upstream: Upstream) -> Line:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                streams = await asyncio.open_connection(upstream.host, upstream.port, limit=STREAM_BYTES)
        except (OSError, TimeoutError):
            raise EgressUnreachable("The proxy that this host itself uses does not answer.") from None
        return Line(*streams, through=upstream)


def _is_loopback_name(host: str) -> bool:
    """A mirror on the host itself, named as such in the host's configuration."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _first(addresses: list[str], host: str, port: int) -> Line:
    reason = "it has no address"
    for address in addresses:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                return Line(*await asyncio.open_connection(address, port, limit=STREAM_BYTES))
        except TimeoutError:
            reason = "no answer"
        except OSError as error:
            reason = error.strerror or str(error)
    raise EgressUnreachable(f"{host}:{port} does not answer: {reason}.")


async def _tunnel(line: Line, host: str, port: int) -> None:
    assert line.through is not None
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if line.through.authorization:
        head += f"Proxy-Authorization: {line.through.authorization}\r\n"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            line.writer.write(head.encode("ascii") + b"\r\n")
            answer = await line.reader.readuntil(b"\r\n\r\n")
        status = answer.split(b"\r\n", 1)[0].split(b" ")[1:2]
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        status = []
    if status != [b"200"]:
        line.writer.transport.abort()
        said = status[0].decode("latin-1") if status else "nothing"
        raise EgressUnreachable(f"The proxy that this host itself uses answered {said} for {host}:{port}.")
