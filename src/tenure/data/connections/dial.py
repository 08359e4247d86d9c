"""Reaching a connection's target: its name is resolved here each time, every address is judged, the judged one is dialled.

So a name cannot lead elsewhere between check and use, and one that is made to lead to this machine or its networks leads nowhere,
unless the owner said that it is private. Metadata services and link-local addresses are never reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tenure.data.connections.targets import Kind, Target, Tls
from tenure.errors import EgressDenied, EgressUnreachable, InvalidArgument
from tenure.secrets.egress.addresses import is_own, refusal
from tenure.secrets.egress.dial import CONNECT_TIMEOUT_S, STREAM_BYTES, Dialer, Line, Resolver, resolve
from tenure.secrets.egress.rules import Rule

CA_BYTES_MAX = 64 * 1024
CONTEXTS_MAX = 64
"""Kept: to make one reads all authorities of this machine."""
PRIVATE_HINT = "If this is a service of your own network that you mean, make the connection with --private."


@dataclass(frozen=True)
class Reach:
    """How to get to `target`. `ca` is what its certificate is checked with (PEM), empty for what this machine trusts."""

    target: Target
    private: bool = False
    ca: str = ""
    resolver: Resolver = resolve
    environment_proxies: Callable[[], dict[str, str]] = urllib.request.getproxies_environment

    def dialer(self) -> Dialer:
        """To be kept: it bounds how much is resolved at once."""
        return Dialer(
            resolver=self.resolver,
            environment_proxies=self.environment_proxies,
            judge=partial(judge, self.private),
        )

    async def line(self, dialer: Dialer) -> Line:
        """A connection, no TLS yet. An HTTP API outside is reached through this host's own proxy where it has one. Raises
        `EgressDenied`, `EgressUnreachable`."""
        target = self.target
        scheme = "https" if target.kind is Kind.HTTP and not self.private else ""  # for which there is no proxy
        try:
            return await dialer.dial(target.host, target.port, Rule(target.host), scheme=scheme)
        except EgressDenied as error:
            raise EgressDenied(error.message, hint="" if self.private else PRIVATE_HINT) from None

    async def protect(self, line: Line) -> Line:
        """The same connection encrypted, the other end having proven who it is, as the target wants. What came before that in
        clear text is dropped: it may be anybody's. Raises `EgressUnreachable`."""
        target = self.target
        if target.tls is Tls.DISABLE:
            return line
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(STREAM_BYTES, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        context = context_of(target.tls, self.ca)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                tls = await loop.start_tls(line.writer.transport, protocol, context, server_hostname=target.host)
            if tls is None:
                raise ConnectionResetError(errno.ECONNRESET, "it hung up")
            protocol.connection_made(tls)
            return Line(reader, asyncio.StreamWriter(tls, protocol, reader, loop), below=line.writer)
        except ssl.SSLCertVerificationError as error:
            raise EgressUnreachable(
                f"{target.authority} shows a certificate that is not believed: {error.verify_message}.",
                hint="Give the authority that signed it with --ca FILE; names must be those of the certificate.",
            ) from None
        except (OSError, TimeoutError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "no answer"
            raise EgressUnreachable(f"There is no TLS with {target.authority}: {reason}.") from None


def judge(private: bool, address: str, host: str, rule: Rule) -> str | None:
    """Why `address` must not be connected to; None when it may."""
    del host, rule
    reason = refusal(address, private_allowed=private, loopback_allowed=private)
    if reason is None and not private and is_own(address):
        return f"it leads to {address}, which is this machine itself"
    return reason


@functools.lru_cache(maxsize=CONTEXTS_MAX)
def context_of(tls: Tls, ca: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca or None)
    context.check_hostname = tls is Tls.VERIFY_FULL
    context.verify_mode = ssl.CERT_REQUIRED if tls.is_verified else ssl.CERT_NONE
    return context


def check_ca(text: str) -> str:
    """`text`, when it is a certificate or several, in PEM. Raises `InvalidArgument`."""
    if "PRIVATE KEY" in text:
        raise InvalidArgument(
            "There is a private key in this. Nothing was kept of it.", hint="Give the certificate only."
        )
    with contextlib.suppress(ssl.SSLError, ValueError):
        if len(text) <= CA_BYTES_MAX and text.isascii() and "-----BEGIN CERTIFICATE-----" in text:
            ssl.create_default_context(cadata=text)
            return text
    raise InvalidArgument("This is no certificate in PEM.", hint="It begins with -----BEGIN CERTIFICATE-----.")
