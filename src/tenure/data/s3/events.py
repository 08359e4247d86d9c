"""Tells whoever is interested that an object came, or went. A wake-up, no more: one may be lost; the truth is a listing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObjectEvent:
    """`owner` is the agent whose bucket it is, empty for a shared one. `etag` is empty for what was deleted."""

    kind: str
    """ "put" or "delete"."""
    owner: str
    bucket: str
    key: str
    etag: str = ""
    size_bytes: int = 0


class ObjectEvents:
    """Of one server."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[ObjectEvent], None]] = []

    def subscribe(self, listener: Callable[[ObjectEvent], None]) -> Callable[[], None]:
        """`listener` is called in the server's loop after each change, and must not wait. Returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def tell(self, event: ObjectEvent) -> None:
        """Whatever listeners raise is theirs: the change has happened."""
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception:  # noqa: BLE001
                _log.exception("a listener of object events failed")
