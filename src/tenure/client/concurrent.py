"""The async SDK: the nouns of `tenure.client.blocking`, to be awaited. See there for what each does and raises.

async with AsyncTenure() as tenure:
    analyst = await tenure.agents.create("analyst")
    print((await analyst.exec(["uname", "-a"])).stdout)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tenure import wire
from tenure.client import calls, data_calls, key_calls, offices, views
from tenure.client.access_keys import AsyncAccessKeys, address_wanted
from tenure.client.buckets import AsyncBuckets
from tenure.client.calls import Call
from tenure.client.connections import AsyncConnections
from tenure.client.data import AsyncData
from tenure.client.databases import AsyncDatabases
from tenure.client.endpoint import Endpoint
from tenure.client.events import RETRY_S, EventDecoder, Patience, poll_waits_s
from tenure.client.ingestion import AsyncLoads, AsyncPipelines
from tenure.client.schedules import AsyncSchedules
from tenure.client.transfer import Progress, download, ignore, ignore_progress, upload
from tenure.client.transport import AsyncTransport, Transport
from tenure.client.webhooks import AsyncWebhooks
from tenure.errors import CommandTimeout, ServerUnreachable
from tenure.export_keys import Key
from tenure.names import check_name
from tenure.settings import Settings
from tenure.wire import ingestion as ingestion_wire
from tenure.wire import keys

T = TypeVar("T")


class AsyncTenure:
    def __init__(self, settings: Settings | None = None, *, endpoint: Endpoint | None = None) -> None:
        self.transport = AsyncTransport(endpoint or Endpoint.find(settings or Settings.from_environment()))
        self.agents = AsyncAgents(self.transport)
        self.runs = AsyncRuns(self.transport)
        self.questions = AsyncQuestions(self.transport)
        self.inbox = AsyncInbox(self.transport)
        self.ssh_keys = AsyncSshKeys(self.transport)
        self.databases = AsyncDatabases(self.transport)
        self.schedules = AsyncSchedules(self.transport)
        self.webhooks = AsyncWebhooks(self.transport)
        self.access_keys = AsyncAccessKeys(self.transport)
        self.loads = AsyncLoads(self.transport)
        self.pipelines = AsyncPipelines(self.transport)
        self.buckets = AsyncBuckets(self.transport)
        self.connections = AsyncConnections(self.transport)

    async def __aenter__(self) -> AsyncTenure:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.transport.close()

    async def health(self) -> wire.Health:
        return await self.transport.send(calls.health())

    async def ssh_gateway(self) -> wire.SshGateway:
        return await self.transport.send(calls.ssh_gateway())

    async def costs(
        self, agent: str | None = None, *, by: wire.CostsBy | str = wire.CostsBy.RUN, limit: int = 200
    ) -> list[wire.Cost]:
        """What brains took, summed by agent, run, step, model or day (UTC); the one with the latest thought first."""
        chosen = views.costs_by(by)
        return (await self.transport.send(calls.list_costs(agent, chosen, limit))).costs


class AsyncAgents:
    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self,
        name: str,
        *,
        cpus: float | None = None,
        memory_mb: int | None = None,
        disk_gb: float | None = None,
        processes: int | None = None,
        egress: Sequence[str] = (),
        asleep: bool = False,
    ) -> AsyncAgent:
        request = views.agent_request(name, cpus, memory_mb, disk_gb, processes, egress, asleep=asleep)
        return AsyncAgent(self._transport, name, await self._transport.send(calls.create_agent(request)))

    async def get(self, name: str) -> AsyncAgent:
        return AsyncAgent(self._transport, name, await self._transport.send(calls.get_agent(name)))

    async def list(self) -> list[AsyncAgent]:
        found = (await self._transport.send(calls.list_agents())).agents
        return [AsyncAgent(self._transport, info.name, info) for info in found]

    async def import_(
        self,
        *sources: str | Path,
        name: str | None = None,
        key: Key | str | Path | None = None,
        progress: Progress = ignore_progress,
    ) -> AsyncAgent:
        """The files are read, and `progress` is called, in another thread."""
        done = await asyncio.to_thread(
            _blocking, self._transport, offices.bring, sources, name, offices.key_of(key), progress
        )
        return AsyncAgent(self._transport, done.agent.name, done.agent)

    def __call__(self, name: str) -> AsyncAgent:
        """An agent by name, without asking the server."""
        return AsyncAgent(self._transport, check_name(name))


def _blocking(transport: AsyncTransport, work: Callable[..., T], *arguments: Any) -> T:
    """Files block, so `work` with them is blocking throughout, with a connection of its own."""
    own = Transport(transport.endpoint)
    try:
        return work(own, *arguments)
    finally:
        own.close()


class AsyncAgent(views.AgentView):
    def __init__(self, transport: AsyncTransport, name: str, info: wire.Agent | None = None) -> None:
        super().__init__(name, info)
        self._transport = transport
        self.objects = AsyncObjects(transport, name)
        self.data = AsyncData(transport, data_calls.of_agent(name))
        self.snapshots = AsyncSnapshots(transport, name)
        self.loads = AsyncLoads(transport, name)

    async def _told(self, call: Call[wire.Agent]) -> AsyncAgent:
        self.info = await self._transport.send(call)
        return self

    async def show(self) -> wire.Agent:
        self.info = await self._transport.send(calls.get_agent(self.name))
        return self.info

    async def wake(self) -> AsyncAgent:
        return await self._told(calls.wake(self.name))

    async def sleep(self, tier: wire.Tier | str = wire.Tier.STOPPED) -> AsyncAgent:
        return await self._told(calls.sleep(self.name, wire.Tier(tier)))

    async def rest(
        self,
        *,
        pause_after_s: float | None = None,
        hibernate_after_s: float | None = None,
        stop_after_s: float | None = None,
    ) -> AsyncAgent:
        request = wire.RestRequest(
            pause_after_s=pause_after_s, hibernate_after_s=hibernate_after_s, stop_after_s=stop_after_s
        )
        return await self._told(calls.set_rest(self.name, request))

    async def brain(self) -> wire.Brain:
        return await self._transport.send(calls.get_brain(self.name))

    async def set_brain(self, settings: wire.BrainRequest) -> wire.Brain:
        return await self._transport.send(calls.set_brain(self.name, settings))

    async def keep_awake(self, seconds: float, reason: str = "") -> AsyncAgent:
        if seconds == 0:
            return await self._told(calls.end_lease(self.name))
        return await self._told(calls.set_lease(self.name, wire.LeaseRequest(seconds=seconds, reason=reason)))

    async def restart(self) -> AsyncAgent:
        return await self._told(calls.restart(self.name))

    async def rebuild(self) -> wire.Rebuilt:
        return await self._transport.send(calls.rebuild(self.name))

    async def ingest(self, source: str | Path, **options: Any) -> ingestion_wire.Load:
        """Loads a file, or what is at an address (`https://…`, `s3://bucket/key`, `office:path`), into a table of its database:
        all of it or nothing. Returns when that is done, or it asks something. See `tenure.client.ingestion.Loads.ingest`."""
        return await self.loads.ingest(source, **options)

    async def history(self, limit: int = 100) -> list[wire.OfficeEvent]:
        return (await self._transport.send(calls.history(self.name, limit))).events

    async def fork(self, new: str, *, snapshot: str | None = None) -> AsyncAgent:
        request = wire.ForkRequest(new=new, snapshot=snapshot)
        return AsyncAgent(self._transport, new, await self._transport.send(calls.fork(self.name, request)))

    async def export(
        self,
        to: str | Path | None = None,
        *,
        since: str | Path | None = None,
        key: Key | str | Path | None = None,
        progress: Progress = ignore_progress,
    ) -> wire.Export:
        """The file is written, and `progress` is called, in another thread."""
        return await asyncio.to_thread(
            _blocking, self._transport, offices.export, self.name, to, since, offices.key_of(key), progress
        )

    async def archive(
        self,
        to: str | None = None,
        *,
        key: Key | str | Path | None = None,
        drop_snapshots: bool = False,
        progress: Progress = ignore_progress,
    ) -> wire.Export:
        """`progress` is called in another thread."""
        return await asyncio.to_thread(
            _blocking,
            self._transport,
            offices.archive,
            self.name,
            to,
            offices.key_of(key),
            drop_snapshots,
            progress,
        )

    async def exports(self) -> wire.ExportList:
        return await self._transport.send(calls.list_exports(self.name))

    async def keep_exporting(
        self,
        to: str,
        *,
        every_s: float = 3600.0,
        key: Key | str | Path | None = None,
        full_every: int = 24,
        chains_kept: int = 3,
    ) -> wire.ExportSchedule:
        with views.refusing():
            request = wire.ExportScheduleRequest(
                to=to,
                every_s=every_s,
                key=offices.told(offices.key_of(key)),
                full_every=full_every,
                chains_kept=chains_kept,
            )
        return await self._transport.send(calls.keep_exporting(self.name, request))

    async def stop_exporting(self) -> None:
        await self._transport.send(calls.stop_exporting(self.name))

    async def preview(self, port: int, path: str = "/") -> wire.Preview:
        with views.refusing():
            request = wire.PreviewRequest(port=port, path=path)
        return await self._transport.send(calls.preview(self.name, request))

    async def delete(self) -> None:
        await self._transport.send(calls.delete_agent(self.name))

    async def exec(
        self,
        command: Sequence[str] | str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str = "agent",
        stdin: bytes | str | None = None,
        timeout_s: float = wire.EXEC_TIMEOUT_S_DEFAULT,
    ) -> wire.ExecResult:
        request = views.exec_request(command, env=env, cwd=cwd, user=user, stdin=stdin, timeout_s=timeout_s)
        return await self._transport.send(calls.execute(self.name, request))

    async def sql(
        self,
        statement: str,
        *,
        key: str | None = None,
        rows_max: int = 1000,
        read_only: bool = False,
        timeout_s: float = wire.STATEMENT_TIMEOUT_S_MAX,
    ) -> wire.SqlResult:
        with views.refusing():
            request = wire.SqlRequest(
                statement=statement, key=key, rows_max=rows_max, read_only=read_only, timeout_s=timeout_s
            )
        return await self._transport.send(calls.sql(self.name, request))

    async def sql_csv(self, statement: str) -> AsyncIterator[bytes]:
        with views.refusing():
            request = wire.CsvRequest(statement=statement)
        async with self._transport.stream(calls.sql_csv(self.name, request)) as response:
            async for piece in response.aiter_bytes():
                yield piece

    async def upload(self, local: str | Path, remote: str, *, progress: Progress = ignore_progress) -> None:
        """The files are read, and `progress` is called, in another thread."""
        await asyncio.to_thread(self._copy, upload, Path(local), remote, progress)

    async def download(self, remote: str, local: str | Path, *, progress: Progress = ignore_progress) -> Path:
        """The files are written, and `progress` is called, in another thread."""
        return await asyncio.to_thread(self._copy, download, remote, Path(local), progress)

    def _copy(self, copy: Any, source: Any, target: Any, progress: Progress) -> Any:
        """tarfile and the file system block, so a copy is blocking throughout, with a connection of its own."""
        transport = Transport(self._transport.endpoint)
        try:
            return copy(transport, self.name, source, target, progress, ignore)
        finally:
            transport.close()

    async def logs(self, lines: int = 200) -> str:
        text = await self._transport.send(calls.office_log(self.name, lines, follow=False))
        return text.decode("utf-8", "replace")

    async def run(
        self,
        goal: str,
        *,
        playbook: str | Path | None = None,
        inputs: Mapping[str, Any] | None = None,
        checks: Sequence[wire.RunCheck] = (),
        follow: bool = False,
    ) -> AsyncRun:
        request = views.run_request(self.name, goal, playbook, inputs, checks)
        run = AsyncRun(self._transport, await self._transport.send(calls.create_run(request)))
        return await run.wait() if follow else run


class AsyncObjects:
    def __init__(self, transport: AsyncTransport, agent: str) -> None:
        self._transport, self._agent = transport, agent

    async def put(
        self,
        bucket: str,
        name: str,
        content: bytes | str | Path | AsyncIterable[bytes],
        content_type: str | None = None,
    ) -> wire.ObjectInfo:
        data = _pieces(content) if isinstance(content, Path) else content
        if isinstance(data, str):
            data = str.encode(data)
        return await self._transport.send(calls.put_object(self._agent, bucket, name, data, content_type))

    async def get(self, bucket: str, name: str) -> bytes:
        return await self._transport.send(calls.get_object(self._agent, bucket, name))

    async def stream(self, bucket: str, name: str) -> AsyncIterator[bytes]:
        async with self._transport.stream(calls.get_object(self._agent, bucket, name)) as response:
            async for piece in response.aiter_bytes(calls.CHUNK_BYTES):
                yield piece

    async def list(self, bucket: str | None = None, prefix: str | None = None) -> list[wire.ObjectInfo]:
        return (await self._transport.send(calls.list_objects(self._agent, bucket, prefix))).objects

    async def delete(self, bucket: str, name: str) -> None:
        await self._transport.send(calls.delete_object(self._agent, bucket, name))

    async def presign(self, bucket: str, name: str, *, put: bool = False, expires_s: int = 3600) -> keys.Address:
        wanted = address_wanted(bucket, name, put, expires_s)
        return await self._transport.send(key_calls.presign(self._agent, wanted))


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, calls.CHUNK_BYTES):
            yield chunk


class AsyncSnapshots:
    def __init__(self, transport: AsyncTransport, agent: str) -> None:
        self._transport, self._agent = transport, agent

    async def create(self, name: str | None = None) -> wire.Snapshot:
        request = wire.SnapshotRequest(name=name)
        return await self._transport.send(calls.take_snapshot(self._agent, request))

    async def list(self) -> list[wire.Snapshot]:
        return (await self._transport.send(calls.list_snapshots(self._agent))).snapshots

    async def delete(self, snapshot: str) -> None:
        await self._transport.send(calls.delete_snapshot(self._agent, snapshot))

    async def restore(self, snapshot: str) -> wire.Restored:
        return await self._transport.send(calls.restore_snapshot(self._agent, snapshot))

    async def diff(self, snapshot: str, to: str | None = None, *, tables: bool = True) -> wire.Diff:
        return await self._transport.send(calls.diff_snapshot(self._agent, snapshot, to, tables))


class AsyncRuns:
    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self, agent: str | None = None, state: str | None = None) -> list[AsyncRun]:
        found = (await self._transport.send(calls.list_runs(agent, state))).runs
        return [AsyncRun(self._transport, info) for info in found]

    async def get(self, run_id: str) -> AsyncRun:
        return AsyncRun(self._transport, await self._transport.send(calls.get_run(run_id)))


class AsyncRun(views.RunView):
    def __init__(self, transport: AsyncTransport, info: wire.Run) -> None:
        super().__init__(info)
        self._transport = transport

    async def _told(self, call: Call[wire.Run]) -> AsyncRun:
        self.info = await self._transport.send(call)
        return self

    async def show(self) -> wire.Run:
        await self._told(calls.get_run(self.id))
        return self.info

    async def cancel(self) -> AsyncRun:
        return await self._told(calls.cancel_run(self.id))

    async def resume(self, answer: str | None = None) -> AsyncRun:
        return await self._told(calls.resume_run(self.id, answer))

    async def fork(
        self,
        at: str,
        new: str,
        *,
        before: bool | None = None,
        playbook: str | Path | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> AsyncRun:
        request = views.run_fork_request(at, new, before, playbook, inputs)
        return AsyncRun(self._transport, await self._transport.send(calls.fork_run(self.id, request)))

    async def wait(self, timeout_s: float | None = None) -> AsyncRun:
        patience, began = Patience(), time.monotonic()
        for wait_s in poll_waits_s():
            try:
                if (await self.show()).state.at_rest:
                    return self
                patience.answered()
            except ServerUnreachable:
                if patience.is_over(time.monotonic()):
                    raise
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise CommandTimeout(f"Run {self.id} is still {self.state} after {timeout_s:g} s.", hint="It goes on.")
            await asyncio.sleep(wait_s)
        raise AssertionError("poll_waits_s does not end")

    async def events(self, after: int = 0) -> AsyncIterator[wire.RunEvent]:
        patience = Patience()
        while True:
            try:
                async for event in self._stream(after):
                    patience.answered()
                    if event.seq > after:
                        after = event.seq
                        yield event
                if (await self.show()).state.at_rest and not await self._later(after):
                    return
            except (ServerUnreachable, CommandTimeout):
                if patience.is_over(time.monotonic()):
                    raise
            await asyncio.sleep(RETRY_S)

    async def _stream(self, after: int) -> AsyncIterator[wire.RunEvent]:
        decoder = EventDecoder()
        async with self._transport.stream(calls.run_event_stream(self.id, after)) as response:
            async for line in response.aiter_lines():
                if (event := decoder.feed(line)) is not None:
                    yield event

    async def journal(self) -> list[wire.RunEvent]:
        """All that the run's journal has by now."""
        found: list[wire.RunEvent] = []
        while more := await self._later(found[-1].seq if found else 0):
            found += more
        return found

    async def _later(self, after: int) -> list[wire.RunEvent]:
        return (await self._transport.send(calls.run_events(self.id, after))).events


class AsyncQuestions:
    """What runs ask people: whether something may go on, or what they cannot know. Each is answered once."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self, agent: str | None = None) -> list[wire.Question]:
        """Those that are open."""
        return (await self._transport.send(calls.list_questions(agent))).questions

    async def answer(self, question: str, answer: str) -> AsyncRun:
        """Answers it for good, and lets its run go on. Raises `NotFound`, `InvalidArgument` for neither yes nor no where that
        is asked, and `Conflict` when somebody was faster (says who), or it is not open any more."""
        with views.refusing():
            request = wire.AnswerRequest(answer=answer)
        return AsyncRun(self._transport, await self._transport.send(calls.answer_question(question, request)))


class AsyncInbox:
    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self, *, unread: bool = False) -> list[wire.Message]:
        return (await self._transport.send(calls.list_messages(unread=unread))).messages

    async def read(self, message_id: str) -> wire.Message:
        return await self._transport.send(calls.read_message(message_id))


class AsyncSshKeys:
    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def add(self, public_key: str, comment: str | None = None) -> wire.SshKey:
        with views.refusing():
            request = wire.SshKeyRequest(public_key=public_key, comment=comment)
        return await self._transport.send(calls.add_ssh_key(request))

    async def list(self) -> list[wire.SshKey]:
        return (await self._transport.send(calls.list_ssh_keys())).keys

    async def remove(self, key: str) -> None:
        await self._transport.send(calls.remove_ssh_key(key))
