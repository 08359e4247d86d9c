"""The egress proxy of one office: an HTTP proxy on `egress.sock` of its doorway, reached inside as `egress:3128`.

Every request passes two decisions: `authorize`, then the office's rules; and the address that its name leads to is
judged before it is dialled. Each decision is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tenure.errors import EgressDenied, TenureError
from tenure.identity.authorize import Principal, PrincipalKind, Resource, authorize
from tenure.secrets.egress.dial import STREAM_BYTES, Dialer, Line
from tenure.secrets.egress.exchange import Exchange
from tenure.secrets.egress.rules import Preset, Rule, decide, expand
from tenure.use import Use

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 128
LISTEN_BACKLOG = 64
RULES_SHOWN_MAX = 12


@dataclass(frozen=True)
class Decision:
    """One answer of the proxy: `what` was asked ("CONNECT", "GET", …, "TLS" for a server name inside a tunnel) of `host` and
    `port`, and why it was answered so (the rule, or the reason for refusing)."""

    agent: str
    what: str
    host: str
    port: int
    allowed: bool
    reason: str

    def __str__(self) -> str:
        answer = "allowed" if self.allowed else "denied"
        return f"{self.what} {self.host}:{self.port} {answer}: {self.reason}"


@dataclass
class Counters:
    """Since the proxy was made; bytes as seen from the office."""

    allowed: int = 0
    denied: int = 0
    failed: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class EgressProxy:
    """`entries` as the owner wrote them; `presets` as `presets.read_presets` found them on this host. `on_decision` must
    return at once and not raise."""

    def __init__(
        self,
        agent: str,
        entries: Sequence[str],
        presets: Mapping[str, Preset],
        *,
        on_decision: Callable[[Decision], None] | None = None,
        dialer: Dialer | None = None,
        allow_private: bool = False,
        use: Use | None = None,
    ) -> None:
        self.agent = agent
        self.use = use or Use()
        self.counters = Counters()
        self._presets = presets
        self._rules = expand(entries, presets)
        self._on_decision = on_decision
        self._dialer = dialer or Dialer(allow_private=allow_private)
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._open: dict[asyncio.Task[None], Exchange] = {}

    # --- life -----------------------------------------------------------------------------------------------------
    @property
    def rules(self) -> tuple[Rule, ...]:
        return self._rules

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._open)

    def set_entries(self, entries: Sequence[str]) -> None:
        """New rules, at once: connections to what is no longer allowed are broken. Raises `InvalidArgument`."""
        self._rules = expand(entries, self._presets)
        for exchange in list(self._open.values()):
            if exchange.target is not None and decide(*exchange.target, self._rules) is None:
                exchange.abort()

    async def serve(self, path: Path) -> None:
        """Starts to listen at `path`, replacing what a killed server left there; returns at once."""
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(
            self.handle, str(path), limit=STREAM_BYTES, backlog=LISTEN_BACKLOG
        )
        self._path = path

    async def close(self) -> None:
        """Stops listening and breaks every connection. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection; as `asyncio.start_server` wants it, so that a test can listen on TCP."""
        task = asyncio.current_task()
        assert task is not None
        exchange = Exchange(self, reader, writer)
        try:
            if len(self._open) >= CONNECTIONS_MAX:
                await exchange.refuse(503, f"This office has {CONNECTIONS_MAX} connections out, which is the limit.")
                return
            self._open[task] = exchange
            await exchange.run()
        except (OSError, EOFError, TimeoutError, asyncio.CancelledError):
            pass  # either side went away, or `close` ends this task, which nobody else awaits
        except Exception:  # one client's trouble must not be another's
            log.exception("the egress proxy of %s failed", self.agent)
        finally:
            self._open.pop(task, None)
            exchange.flow.closed()
            exchange.abort()

    # --- decisions ------------------------------------------------------------------------------------------------
    def decide(self, what: str, host: str, port: int) -> Rule:
        """The rule that allows it. Raises `Forbidden`, `EgressDenied` with a message for the person who asks."""
        try:
            resource = Resource("egress", owner=self.agent, name=f"{host}:{port}")
            authorize(Principal(PrincipalKind.OFFICE, self.agent), "egress:connect", resource)
            rule = decide(host, port, self._rules)
            if rule is None:
                raise EgressDenied(f"Agent {self.agent} may not reach {host}:{port}.", hint=self._advice(host, port))
        except TenureError as error:
            self._report(what, host, port, False, error.message)
            raise
        if what == "TLS":
            return rule
        self._report(what, host, port, True, f"{rule.preset} ({rule})" if rule.preset else str(rule))
        return rule

    async def dial(self, what: str, host: str, port: int, rule: Rule, scheme: str) -> Line:
        """Raises `EgressDenied`, `EgressUnreachable`."""
        try:
            return await self._dialer.dial(host, port, rule, scheme=scheme)
        except EgressDenied as error:
            self._report(what, host, port, False, error.message)
            raise
        except TenureError:
            self.counters.failed += 1
            raise

    def _report(self, what: str, host: str, port: int, allowed: bool, reason: str) -> None:
        if allowed:
            self.counters.allowed += 1
        else:
            self.counters.denied += 1
        if self._on_decision is not None:
            with contextlib.suppress(Exception):
                self._on_decision(Decision(self.agent, what, host, port, allowed, reason))

    def _advice(self, host: str, port: int) -> str:
        shown = [str(rule) for rule in self._rules[:RULES_SHOWN_MAX]]
        if len(self._rules) > RULES_SHOWN_MAX:
            shown.append("…")
        preset = next((name for name, preset in self._presets.items() if decide(host, port, preset.rules)), None)
        entry = preset or (host if port in (80, 443) else f"{host}:{port}")
        return (
            f"It may reach: {', '.join(shown) or 'nothing'}. Its owner can allow this with the egress entry `{entry}`"
            f" (`tenure agent create NAME --egress {entry}`)."
        )
