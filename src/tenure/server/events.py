"""A run's journal as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from tenure import wire
from tenure.errors import TenureError
from tenure.server.failures import payload_bytes
from tenure.server.services import Runs

POLL_S = 0.25
KEEP_ALIVE_S = 10.0
"""A comment this often, so that both ends notice when the other is gone."""
EVENTS_PER_READ = 200


async def event_stream(runs: Runs, run_id: str, after: int) -> AsyncIterator[bytes]:
    """Events with `seq > after`, as they come, until the run is at rest and all were sent."""
    yield b": events of a run\n\n"
    spoke_s = time.monotonic()
    while True:
        try:
            # First the state, then the events: what is written between the two is not missed.
            at_rest = wire.RunState((await runs.get(run_id)).state).at_rest
            events = await runs.events(run_id, after=after, limit=EVENTS_PER_READ)
        except TenureError as error:
            yield b"event: error\ndata: " + payload_bytes(error) + b"\n\n"
            return
        for event in events:
            shown = wire.RunEvent.model_validate(event)
            yield f"id: {shown.seq}\ndata: {shown.model_dump_json()}\n\n".encode()
            after, spoke_s = shown.seq, time.monotonic()
        if events:
            continue
        if at_rest:
            return
        if time.monotonic() - spoke_s > KEEP_ALIVE_S:
            yield b": still there\n\n"
            spoke_s = time.monotonic()
        await asyncio.sleep(POLL_S)
