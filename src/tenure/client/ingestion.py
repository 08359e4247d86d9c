"""Files into tables, in both SDKs.

load = tenure.agents("analyst").ingest("cars.csv", into="cars")
print(load.rows_loaded, load.columns)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tenure.client import ingestion_calls as calls
from tenure.client.calls import CHUNK_BYTES
from tenure.client.events import poll_waits_s
from tenure.client.transport import AsyncTransport, Transport
from tenure.errors import Conflict, InvalidArgument, NotFound, from_payload
from tenure.wire import ingestion as wire

Progress = Callable[[wire.Load], None]
"""Told how a load goes, whenever it is looked at."""
Sent = Callable[[int], None]
"""Told how many bytes were just sent."""
SCHEMES = ("http://", "https://", "s3://", "office:")


def _ignore(_: object) -> None:
    return None


def is_address(source: str | Path) -> bool:
    """Whether the server reads it itself."""
    return isinstance(source, str) and source.startswith(SCHEMES)


def outcome(load: wire.Load) -> wire.Load:
    """The load, when it is done, or asks. Raises what it failed of."""
    if load.state == "failed":
        raise from_payload({"error": load.error or {}})
    if load.state == "cancelled":
        raise Conflict(f"The load {load.id} was cancelled; nothing of it was loaded.")
    return load


def check_file(source: str | Path) -> Path:
    """Raises `NotFound`, `InvalidArgument`."""
    path = Path(source)
    if path.is_dir():
        raise InvalidArgument(f"{path} is a directory.", hint="Load its files one by one, or put them into a bucket.")
    if not path.exists():
        raise NotFound(f"There is no file {path}.")
    return path


def request_for(source: str, options: wire.LoadOptions) -> wire.LoadRequest:
    return wire.LoadRequest(source=source, **options.model_dump())


def options_of(**given: Any) -> wire.LoadOptions:
    """`key` here are the columns of the key, as on the command line; `once` is the key by which it happens once."""
    keys: str | Sequence[str] | None = given.pop("key", None)
    given["keys"] = [part.strip() for part in keys.split(",")] if isinstance(keys, str) else list(keys or ())
    given["key"] = given.pop("once", None)
    return wire.LoadOptions(**{name: value for name, value in given.items() if value is not None})


class Loads:
    """Of one agent or shared database, or of all."""

    def __init__(self, transport: Transport, agent: str | None = None, database: str | None = None) -> None:
        self._transport, self._agent, self._database = transport, agent, database

    def begin(self, source: str | Path, *, sent: Sent = _ignore, **options: Any) -> wire.Load:
        """Sends a file, or tells the server an address, and returns while it is loaded. `options` are the fields of
        `wire.LoadOptions`, but for `key`, the columns of the key of an upsert, and `once`, by which it happens once."""
        wanted = options_of(**options)
        if is_address(source):
            return self._transport.send(calls.load_from(self._agent, self._database, request_for(str(source), wanted)))
        path = check_file(source)
        return self._transport.send(
            calls.send_file(self._agent, self._database, path.name, wanted, _pieces(path, sent))
        )

    def wait(self, load: wire.Load | str, *, progress: Progress = _ignore, timeout_s: float | None = None) -> wire.Load:
        """Returns when it is done, or asks something (`question`). Raises what it failed of."""
        found = self.get(load if isinstance(load, str) else load.id)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for wait_s in poll_waits_s():
            progress(found)
            if found.state in wire.OVER or found.state == "waiting":
                break
            if deadline is not None and time.monotonic() > deadline:
                raise Conflict(f"The load {found.id} is not done within {timeout_s:g} s; it goes on.")
            time.sleep(wait_s)
            found = self.get(found.id)
        return outcome(found)

    def ingest(
        self, source: str | Path, *, progress: Progress = _ignore, sent: Sent = _ignore, **options: Any
    ) -> wire.Load:
        """Loads a file, or what is at an address, into a table: all of it or nothing. See `begin` and `wait`."""
        return self.wait(self.begin(source, sent=sent, **options), progress=progress)

    def get(self, load_id: str) -> wire.Load:
        return self._transport.send(calls.get_load(load_id))

    def list(self, limit: int = 100) -> list[wire.Load]:
        """The newest first."""
        return self._transport.send(calls.list_loads(self._agent, self._database, limit)).loads

    def answer(self, load_id: str, *, allow: bool) -> wire.Load:
        return self._transport.send(calls.answer_load(load_id, allow))

    def cancel(self, load_id: str) -> wire.Load:
        return self._transport.send(calls.cancel_load(load_id))


class Pipelines:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        name: str,
        source: str,
        *,
        agent: str | None = None,
        database: str | None = None,
        every_s: int | None = None,
        cron: str | None = None,
        tz: str = "UTC",
        on_arrival: bool = False,
        **options: Any,
    ) -> wire.Pipeline:
        """Loads what is at an address now, and again by its times; each content once."""
        request = pipeline_request(name, source, agent, database, every_s, cron, tz, on_arrival, options)
        return self._transport.send(calls.create_pipeline(request))

    def list(self, agent: str | None = None) -> list[wire.Pipeline]:
        return self._transport.send(calls.list_pipelines(agent)).pipelines

    def get(self, name: str) -> wire.Pipeline:
        return self._transport.send(calls.get_pipeline(name))

    def loads(self, name: str, limit: int = 100) -> list[wire.Load]:
        """Its history, the newest first."""
        return self._transport.send(calls.pipeline_loads(name, limit)).loads

    def pause(self, name: str) -> wire.Pipeline:
        return self._transport.send(calls.pause_pipeline(name))

    def resume(self, name: str) -> wire.Pipeline:
        return self._transport.send(calls.resume_pipeline(name))

    def run(self, name: str) -> wire.Pipeline:
        """Now; returns when the loads of what is new have begun."""
        return self._transport.send(calls.run_pipeline(name))

    def delete(self, name: str) -> None:
        self._transport.send(calls.delete_pipeline(name))


class AsyncLoads:
    """As `Loads`."""

    def __init__(self, transport: AsyncTransport, agent: str | None = None, database: str | None = None) -> None:
        self._transport, self._agent, self._database = transport, agent, database

    async def begin(self, source: str | Path, *, sent: Sent = _ignore, **options: Any) -> wire.Load:
        wanted = options_of(**options)
        if is_address(source):
            request = request_for(str(source), wanted)
            return await self._transport.send(calls.load_from(self._agent, self._database, request))
        path = check_file(source)
        content = _async_pieces(path, sent)
        return await self._transport.send(calls.send_file(self._agent, self._database, path.name, wanted, content))

    async def wait(
        self, load: wire.Load | str, *, progress: Progress = _ignore, timeout_s: float | None = None
    ) -> wire.Load:
        found = await self.get(load if isinstance(load, str) else load.id)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for wait_s in poll_waits_s():
            progress(found)
            if found.state in wire.OVER or found.state == "waiting":
                break
            if deadline is not None and time.monotonic() > deadline:
                raise Conflict(f"The load {found.id} is not done within {timeout_s:g} s; it goes on.")
            await asyncio.sleep(wait_s)
            found = await self.get(found.id)
        return outcome(found)

    async def ingest(
        self, source: str | Path, *, progress: Progress = _ignore, sent: Sent = _ignore, **options: Any
    ) -> wire.Load:
        return await self.wait(await self.begin(source, sent=sent, **options), progress=progress)

    async def get(self, load_id: str) -> wire.Load:
        return await self._transport.send(calls.get_load(load_id))

    async def list(self, limit: int = 100) -> list[wire.Load]:
        return (await self._transport.send(calls.list_loads(self._agent, self._database, limit))).loads

    async def answer(self, load_id: str, *, allow: bool) -> wire.Load:
        return await self._transport.send(calls.answer_load(load_id, allow))

    async def cancel(self, load_id: str) -> wire.Load:
        return await self._transport.send(calls.cancel_load(load_id))


class AsyncPipelines:
    """As `Pipelines`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        name: str,
        source: str,
        *,
        agent: str | None = None,
        database: str | None = None,
        every_s: int | None = None,
        cron: str | None = None,
        tz: str = "UTC",
        on_arrival: bool = False,
        **options: Any,
    ) -> wire.Pipeline:
        request = pipeline_request(name, source, agent, database, every_s, cron, tz, on_arrival, options)
        return await self._transport.send(calls.create_pipeline(request))

    async def list(self, agent: str | None = None) -> list[wire.Pipeline]:
        return (await self._transport.send(calls.list_pipelines(agent))).pipelines

    async def get(self, name: str) -> wire.Pipeline:
        return await self._transport.send(calls.get_pipeline(name))

    async def loads(self, name: str, limit: int = 100) -> list[wire.Load]:
        return (await self._transport.send(calls.pipeline_loads(name, limit))).loads

    async def pause(self, name: str) -> wire.Pipeline:
        return await self._transport.send(calls.pause_pipeline(name))

    async def resume(self, name: str) -> wire.Pipeline:
        return await self._transport.send(calls.resume_pipeline(name))

    async def run(self, name: str) -> wire.Pipeline:
        return await self._transport.send(calls.run_pipeline(name))

    async def delete(self, name: str) -> None:
        await self._transport.send(calls.delete_pipeline(name))


def pipeline_request(
    name: str,
    source: str,
    agent: str | None,
    database: str | None,
    every_s: int | None,
    cron: str | None,
    tz: str,
    on_arrival: bool,
    options: dict[str, Any],
) -> wire.PipelineRequest:
    return wire.PipelineRequest(
        name=name,
        source=source,
        agent=agent,
        database=database,
        every_s=every_s,
        cron=cron,
        tz=tz,
        on_arrival=on_arrival,
        **options_of(**options).model_dump(),
    )


def _pieces(path: Path, sent: Sent) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece
            sent(len(piece))


async def _async_pieces(path: Path, sent: Sent) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield piece
            sent(len(piece))
