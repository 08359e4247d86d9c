"""The Python SDK: `Tenure` (blocking) and `AsyncTenure`, with the same nouns.

endpoint.py    which server, which token
calls.py       every request of the HTTP API, once
transport.py   carries a call out, blocking or async; errors become `tenure.errors`
blocking.py    Tenure, Agent, Run, …
concurrent.py  AsyncTenure, AsyncAgent, AsyncRun, …
attach.py      a command's streams over a WebSocket (what `tenure exec` and `shell` use)
archive.py     files and directories as tar streams
hands.py       `HttpHands`: how a worker acts in an office
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenure.client.blocking import Agent, Run, Tenure
    from tenure.client.concurrent import AsyncAgent, AsyncRun, AsyncTenure

__all__ = ["Agent", "AsyncAgent", "AsyncRun", "AsyncTenure", "Run", "Tenure"]


def __getattr__(name: str) -> Any:
    """Lazy, so that `tenure exec` can use `client.attach` without loading httpx and pydantic."""
    if name in ("Agent", "Run", "Tenure"):
        from tenure.client import blocking

        return getattr(blocking, name)
    if name in ("AsyncAgent", "AsyncRun", "AsyncTenure"):
        from tenure.client import concurrent

        return getattr(concurrent, name)
    raise AttributeError(f"module 'tenure.client' has no attribute {name!r}")
