"""Hears PostgreSQL's notifications, so that nobody has to poll fast; a missed one costs a poll's delay and no more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from typing import Self

import psycopg
from psycopg import sql

RECONNECT_PAUSE_S = 1.0

log = logging.getLogger("tenure.work")


class Listener:
    """One connection that listens on some channels; `wait` sleeps until something is said on one of them.

    While the connection is down, waits end by their timeout: callers poll at that pace."""

    def __init__(self, dsn: str, *channels: str) -> None:
        self._dsn = dsn
        self._channels = channels
        self._waiters: defaultdict[tuple[str, str | None], set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._listen(), name="listener")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def subscribe(self, channel: str, payload: str | None = None) -> Subscription:
        """Hears `channel` from now on (with `payload`, only that one)."""
        return Subscription(self._waiters, (channel, payload))

    def _tell(self, channel: str, payload: str) -> None:
        for key in ((channel, None), (channel, payload)):
            for event in self._waiters.get(key, ()):
                event.set()

    def _tell_all(self) -> None:
        for events in self._waiters.values():
            for event in events:
                event.set()

    async def _listen(self) -> None:
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._dsn, autocommit=True, connect_timeout=5
                ) as connection:
                    for channel in self._channels:
                        await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                    self._tell_all()  # whatever was said before now was missed
                    async for notification in connection.notifies():
                        self._tell(notification.channel, notification.payload)
            except (psycopg.Error, OSError) as error:
                log.warning("listening to the control database: %s", str(error).strip())
            await asyncio.sleep(RECONNECT_PAUSE_S)


class Subscription:
    """Use in a `with`: from its beginning nothing said is missed, however the waits are spaced."""

    def __init__(self, waiters: defaultdict[tuple[str, str | None], set[asyncio.Event]], key: tuple[str, str | None]):
        self._waiters, self._key = waiters, key
        self.event = asyncio.Event()

    def __enter__(self) -> Self:
        self._waiters[self._key].add(self.event)
        return self

    def __exit__(self, *_: object) -> None:
        self._waiters[self._key].discard(self.event)
        if not self._waiters[self._key]:
            del self._waiters[self._key]

    async def wait(self, timeout_s: float) -> bool:
        """Whether something was said since the last wait, within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.event.wait()
        except TimeoutError:
            return False
        self.event.clear()
        return True
