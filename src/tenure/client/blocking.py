"""The blocking SDK.

    from tenure import Tenure

    tenure = Tenure()
    analyst = tenure.agents.create("analyst", cpus=1, memory_mb=1024, disk_gb=10, egress=["pip"])
    print(analyst.exec("python3 --version").stdout)
    run = analyst.run("find the anomalous days", playbook="weather.yaml").wait()
    print(run.state, [(step.id, step.attempts) for step in run.steps])

Every method raises `tenure.errors.TenureError`: `NotFound`, `ServerUnreachable`, and what the server answered.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tenure import wire
from tenure.client import calls, data_calls, key_calls, offices, views
from tenure.client.access_keys import AccessKeys, address_wanted
from tenure.client.buckets import Buckets
from tenure.client.calls import Call
from tenure.client.connections import Connections
from tenure.client.data import Data
from tenure.client.databases import Databases
from tenure.client.endpoint import Endpoint
from tenure.client.events import RETRY_S, EventDecoder, Patience, poll_waits_s
from tenure.client.ingestion import Loads, Pipelines
from tenure.client.schedules import Schedules
from tenure.client.transfer import Progress, download, ignore, ignore_progress, upload
from tenure.client.transport import Transport
from tenure.client.webhooks import Webhooks
from tenure.errors import CommandTimeout, ServerUnreachable
from tenure.export_keys import Key
from tenure.names import check_name
from tenure.settings import Settings
from tenure.wire import ingestion as ingestion_wire
from tenure.wire import keys

T = TypeVar("T")


class Tenure:
    """A server. Found by `TENURE_URL`, or by the socket under `TENURE_HOME`; connects at the first request."""

    def __init__(self, settings: Settings | None = None, *, endpoint: Endpoint | None = None) -> None:
        self.transport = Transport(endpoint or Endpoint.find(settings or Settings.from_environment()))
        self.agents = Agents(self.transport)
        self.runs = Runs(self.transport)
        self.questions = Questions(self.transport)
        self.inbox = Inbox(self.transport)
        self.ssh_keys = SshKeys(self.transport)
        self.databases = Databases(self.transport)
        self.schedules = Schedules(self.transport)
        self.webhooks = Webhooks(self.transport)
        self.access_keys = AccessKeys(self.transport)
        self.loads = Loads(self.transport)
        self.pipelines = Pipelines(self.transport)
        self.buckets = Buckets(self.transport)
        self.connections = Connections(self.transport)

    def __enter__(self) -> Tenure:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.transport.close()

    def health(self) -> wire.Health:
        return self.transport.send(calls.health())

    def ssh_gateway(self) -> wire.SshGateway:
        """Where the SSH gateway listens, and its host key."""
        return self.transport.send(calls.ssh_gateway())

    def costs(
        self, agent: str | None = None, *, by: wire.CostsBy | str = wire.CostsBy.RUN, limit: int = 200
    ) -> list[wire.Cost]:
        """What brains took, summed by agent, run, step, model or day (UTC); the one with the latest thought first."""
        chosen = views.costs_by(by)
        return self.transport.send(calls.list_costs(agent, chosen, limit)).costs


class Agents:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        name: str,
        *,
        cpus: float | None = None,
        memory_mb: int | None = None,
        disk_gb: float | None = None,
        processes: int | None = None,
        egress: Sequence[str] = (),
        asleep: bool = False,
    ) -> Agent:
        """A new agent with its office, awake unless it is to be `asleep`. What is None takes the server's default; `egress`
        are presets ("pip", "npm", "apt") or domains. Raises `AlreadyExists`, `InvalidName`, `InvalidArgument`, `SetupError`."""
        request = views.agent_request(name, cpus, memory_mb, disk_gb, processes, egress, asleep=asleep)
        return Agent(self._transport, name, self._transport.send(calls.create_agent(request)))

    def get(self, name: str) -> Agent:
        """Raises `NotFound`."""
        return Agent(self._transport, name, self._transport.send(calls.get_agent(name)))

    def list(self) -> list[Agent]:
        found = self._transport.send(calls.list_agents()).agents
        return [Agent(self._transport, info.name, info) for info in found]

    def import_(
        self,
        *sources: str | Path,
        name: str | None = None,
        key: Key | str | Path | None = None,
        progress: Progress = ignore_progress,
    ) -> Agent:
        """A new agent, asleep, of an export: a file, or an address in S3 that the server reads. Those that it continues are
        looked for beside it, or given, too. Without `name` it is called as it was. Raises `ArchiveError`, `AlreadyExists`."""
        done = offices.bring(self._transport, sources, name, offices.key_of(key), progress)
        return Agent(self._transport, done.agent.name, done.agent)

    def __call__(self, name: str) -> Agent:
        """An agent by name, without asking the server."""
        return Agent(self._transport, check_name(name))


class Agent(views.AgentView):
    """An agent and its office. Whatever needs the office wakes it."""

    def __init__(self, transport: Transport, name: str, info: wire.Agent | None = None) -> None:
        super().__init__(name, info)
        self._transport = transport
        self.objects = Objects(transport, name)
        self.data = Data(transport, data_calls.of_agent(name))
        self.snapshots = Snapshots(transport, name)
        self.loads = Loads(transport, name)

    def _told(self, call: Call[wire.Agent]) -> Agent:
        self.info = self._transport.send(call)
        return self

    def show(self) -> wire.Agent:
        self.info = self._transport.send(calls.get_agent(self.name))
        return self.info

    def wake(self) -> Agent:
        return self._told(calls.wake(self.name))

    def sleep(self, tier: wire.Tier | str = wire.Tier.STOPPED) -> Agent:
        """Puts the office to rest; everything in its volume stays. Stopped: its processes end. Hibernated: they lie on disk and
        go on when it wakes; raises `Conflict` when that is not possible now. Paused: they are frozen. An office that sleeps
        deeper already stays so."""
        return self._told(calls.sleep(self.name, wire.Tier(tier)))

    def rest(
        self,
        *,
        pause_after_s: float | None = None,
        hibernate_after_s: float | None = None,
        stop_after_s: float | None = None,
    ) -> Agent:
        """After how many seconds without use the office sinks to each tier. 0: never; None: as the server is set up."""
        request = wire.RestRequest(
            pause_after_s=pause_after_s, hibernate_after_s=hibernate_after_s, stop_after_s=stop_after_s
        )
        return self._told(calls.set_rest(self.name, request))

    def brain(self) -> wire.Brain:
        """How it thinks. Raises `NotFound` when nobody has chosen that."""
        return self._transport.send(calls.get_brain(self.name))

    def set_brain(self, settings: wire.BrainRequest) -> wire.Brain:
        """Chooses how it thinks, for runs that begin from now on; takes the place of what was chosen before."""
        return self._transport.send(calls.set_brain(self.name, settings))

    def keep_awake(self, seconds: float, reason: str = "") -> Agent:
        """The office stays awake for so long, used or not; replaces what was said before. 0 ends it."""
        if seconds == 0:
            return self._told(calls.end_lease(self.name))
        return self._told(calls.set_lease(self.name, wire.LeaseRequest(seconds=seconds, reason=reason)))

    def restart(self) -> Agent:
        return self._told(calls.restart(self.name))

    def rebuild(self) -> wire.Rebuilt:
        """A new root from the image, with home directories, database and objects; what was installed is installed again in the
        background. What was there is the snapshot `before`. Raises `SandboxError` when it would not boot: then all is as it
        was."""
        return self._transport.send(calls.rebuild(self.name))

    def ingest(self, source: str | Path, **options: Any) -> ingestion_wire.Load:
        """Loads a file, or what is at an address (`https://…`, `s3://bucket/key`, `office:path`), into a table of its database:
        all of it or nothing. Returns when that is done, or it asks something. See `tenure.client.ingestion.Loads.ingest`."""
        return self.loads.ingest(source, **options)

    def history(self, limit: int = 100) -> list[wire.OfficeEvent]:
        """What was decided about the office and why: failed boots, repairs, restarts. The newest first."""
        return self._transport.send(calls.history(self.name, limit)).events

    def fork(self, new: str, *, snapshot: str | None = None) -> Agent:
        """A new agent, awake, whose office is a copy of this one's: of a snapshot (id or name), or as it is now."""
        request = wire.ForkRequest(new=new, snapshot=snapshot)
        return Agent(self._transport, new, self._transport.send(calls.fork(self.name, request)))

    def export(
        self,
        to: str | Path | None = None,
        *,
        since: str | Path | None = None,
        key: Key | str | Path | None = None,
        progress: Progress = ignore_progress,
    ) -> wire.Export:
        """The whole office as one file, at a path (a directory: a name is made) or in S3 (s3://BUCKET/KEY, written by the
        server); with `since` (its file, address or id) only what changed since an earlier export. With a `key`, or the file of
        one, it is encrypted. Returns when it is there whole; `destination` says where. Raises `NotFound`, `StorageError`."""
        return offices.export(self._transport, self.name, to, since, offices.key_of(key), progress)

    def archive(
        self,
        to: str | None = None,
        *,
        key: Key | str | Path | None = None,
        drop_snapshots: bool = False,
        progress: Progress = ignore_progress,
    ) -> wire.Export:
        """Puts the office away in S3 (s3://BUCKET/PREFIX/; None: where its schedule of exports keeps copies, with its key), and
        returns when nothing of it is on the server's machine but its snapshots: unless `drop_snapshots` deletes them. Any use
        brings it back; the archive stays in S3. The server keeps the `key`. Raises `Conflict` while a run of it is at work,
        `StorageError` when it could not be put away and is still there."""
        return offices.archive(self._transport, self.name, to, offices.key_of(key), drop_snapshots, progress)

    def exports(self) -> wire.ExportList:
        """Those of this server, and the schedule, if there is one."""
        return self._transport.send(calls.list_exports(self.name))

    def keep_exporting(
        self,
        to: str,
        *,
        every_s: float = 3600.0,
        key: Key | str | Path | None = None,
        full_every: int = 24,
        chains_kept: int = 3,
    ) -> wire.ExportSchedule:
        """From now on the server keeps a copy of the office in S3 (s3://BUCKET/PREFIX/), made anew every so often: every
        `full_every`-th one is whole, the others hold what changed. It keeps the `key`, too."""
        with views.refusing():
            request = wire.ExportScheduleRequest(
                to=to,
                every_s=every_s,
                key=offices.told(offices.key_of(key)),
                full_every=full_every,
                chains_kept=chains_kept,
            )
        return self._transport.send(calls.keep_exporting(self.name, request))

    def stop_exporting(self) -> None:
        """Ends the schedule; what was made stays where it is. Raises `NotFound` when there is none."""
        self._transport.send(calls.stop_exporting(self.name))

    def preview(self, port: int, path: str = "/") -> wire.Preview:
        """A link to what the office serves on `port`: its `url` lets a browser in once, within two minutes."""
        with views.refusing():
            request = wire.PreviewRequest(port=port, path=path)
        return self._transport.send(calls.preview(self.name, request))

    def delete(self) -> None:
        """Deletes the agent and everything it owns. Cannot be undone."""
        self._transport.send(calls.delete_agent(self.name))

    def exec(
        self,
        command: Sequence[str] | str,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str = "agent",
        stdin: bytes | str | None = None,
        timeout_s: float = wire.EXEC_TIMEOUT_S_DEFAULT,
    ) -> wire.ExecResult:
        """Runs a command (a sequence) or a shell script (a string) and returns when it has ended, by itself or by
        `timeout_s` (then `timed_out`). Each stream is kept up to 1 MiB. A non-zero exit is not an error."""
        request = views.exec_request(command, env=env, cwd=cwd, user=user, stdin=stdin, timeout_s=timeout_s)
        return self._transport.send(calls.execute(self.name, request))

    def sql(
        self,
        statement: str,
        *,
        key: str | None = None,
        rows_max: int = 1000,
        read_only: bool = False,
        timeout_s: float = wire.STATEMENT_TIMEOUT_S_MAX,
    ) -> wire.SqlResult:
        """Runs statements in the office's database in one transaction; with `key` at most once, ever; `read_only` refuses
        what would write. Raises `DatabaseError`, `CommandTimeout`."""
        with views.refusing():
            request = wire.SqlRequest(
                statement=statement, key=key, rows_max=rows_max, read_only=read_only, timeout_s=timeout_s
            )
        return self._transport.send(calls.sql(self.name, request))

    def sql_csv(self, statement: str) -> Iterator[bytes]:
        """All rows of one query as CSV with a line of headers, in pieces as they come: of any size, in little memory. Raises
        `DatabaseError`."""
        with views.refusing():
            request = wire.CsvRequest(statement=statement)
        with self._transport.stream(calls.sql_csv(self.name, request)) as response:
            yield from response.iter_bytes()

    def upload(self, local: str | Path, remote: str, *, progress: Progress = ignore_progress) -> None:
        """Copies a file or directory into the office; like `cp`, into `remote` when that is a directory."""
        upload(self._transport, self.name, Path(local), remote, progress, ignore)

    def download(self, remote: str, local: str | Path, *, progress: Progress = ignore_progress) -> Path:
        """Copies a file or directory out of the office; like `cp`, into `local` when that is a directory. Returns where
        it went."""
        return download(self._transport, self.name, remote, Path(local), progress, ignore)

    def logs(self, lines: int = 200) -> str:
        """The end of the office's log."""
        return self._transport.send(calls.office_log(self.name, lines, follow=False)).decode("utf-8", "replace")

    def run(
        self,
        goal: str,
        *,
        playbook: str | Path | None = None,
        inputs: Mapping[str, Any] | None = None,
        checks: Sequence[wire.RunCheck] = (),
        follow: bool = False,
    ) -> Run:
        """Starts a run; `playbook` is a path, or text of several lines. Without one the agent's brain finds the way, and is done
        when the `checks` hold. With `follow`, returns when it is at rest."""
        request = views.run_request(self.name, goal, playbook, inputs, checks)
        run = Run(self._transport, self._transport.send(calls.create_run(request)))
        return run.wait() if follow else run


class Objects:
    """The agent's object storage."""

    def __init__(self, transport: Transport, agent: str) -> None:
        self._transport, self._agent = transport, agent

    def put(
        self, bucket: str, name: str, content: bytes | str | Path | Iterable[bytes], content_type: str | None = None
    ) -> wire.ObjectInfo:
        """Stores bytes, text, a file (a `Path`) or a stream. Replaces an object of the same name."""
        if isinstance(content, Path):
            with content.open("rb") as file:
                pieces = iter(lambda: file.read(calls.CHUNK_BYTES), b"")
                return self._transport.send(calls.put_object(self._agent, bucket, name, pieces, content_type))
        data = content.encode() if isinstance(content, str) else content
        return self._transport.send(calls.put_object(self._agent, bucket, name, data, content_type))

    def get(self, bucket: str, name: str) -> bytes:
        """Raises `NotFound`."""
        return self._transport.send(calls.get_object(self._agent, bucket, name))

    def stream(self, bucket: str, name: str) -> Iterator[bytes]:
        """Like `get`, in pieces."""
        with self._transport.stream(calls.get_object(self._agent, bucket, name)) as response:
            yield from response.iter_bytes(calls.CHUNK_BYTES)

    def list(self, bucket: str | None = None, prefix: str | None = None) -> list[wire.ObjectInfo]:
        return self._transport.send(calls.list_objects(self._agent, bucket, prefix)).objects

    def delete(self, bucket: str, name: str) -> None:
        self._transport.send(calls.delete_object(self._agent, bucket, name))

    def presign(self, bucket: str, name: str, *, put: bool = False, expires_s: int = 3600) -> keys.Address:
        """An address outside at which anybody may get (or put) the object, until its time. Raises `InvalidArgument`."""
        return self._transport.send(key_calls.presign(self._agent, address_wanted(bucket, name, put, expires_s)))


class Snapshots:
    """The agent's snapshots: the whole office as of one instant each. They are called by id or by name."""

    def __init__(self, transport: Transport, agent: str) -> None:
        self._transport, self._agent = transport, agent

    def create(self, name: str | None = None) -> wire.Snapshot:
        """Of the office as it is now, awake or asleep. Stays until it is deleted."""
        request = wire.SnapshotRequest(name=name)
        return self._transport.send(calls.take_snapshot(self._agent, request))

    def list(self) -> list[wire.Snapshot]:
        """The oldest first; also the automatic ones."""
        return self._transport.send(calls.list_snapshots(self._agent)).snapshots

    def delete(self, snapshot: str) -> None:
        self._transport.send(calls.delete_snapshot(self._agent, snapshot))

    def restore(self, snapshot: str) -> wire.Restored:
        """Puts the whole office back; restoring the answer's `before` undoes it. Raises `Conflict` while a run of the agent
        is at work."""
        return self._transport.send(calls.restore_snapshot(self._agent, snapshot))

    def diff(self, snapshot: str, to: str | None = None, *, tables: bool = True) -> wire.Diff:
        """What became of files, objects and (with `tables`) rows since, up to another snapshot or now."""
        return self._transport.send(calls.diff_snapshot(self._agent, snapshot, to, tables))


class Runs:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, agent: str | None = None, state: str | None = None) -> list[Run]:
        found = self._transport.send(calls.list_runs(agent, state)).runs
        return [Run(self._transport, info) for info in found]

    def get(self, run_id: str) -> Run:
        """Raises `NotFound`."""
        return Run(self._transport, self._transport.send(calls.get_run(run_id)))


class Run(views.RunView):
    def __init__(self, transport: Transport, info: wire.Run) -> None:
        super().__init__(info)
        self._transport = transport

    def _told(self, call: Call[wire.Run]) -> Run:
        self.info = self._transport.send(call)
        return self

    def show(self) -> wire.Run:
        self._told(calls.get_run(self.id))
        return self.info

    def cancel(self) -> Run:
        return self._told(calls.cancel_run(self.id))

    def resume(self, answer: str | None = None) -> Run:
        """Goes on with a parked run, with the answer to its question. Raises `Conflict` when it is not parked."""
        return self._told(calls.resume_run(self.id, answer))

    def fork(
        self,
        at: str,
        new: str,
        *,
        before: bool | None = None,
        playbook: str | Path | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Run:
        """A run of a new agent, named `new`, that goes on from the moment of the step `at` of this one: its office and its
        journal are as they were then. `before` says which moment: before the step or after it; without, after it if there is
        a snapshot of that. A `playbook` (path or text) takes the place of what is left; what has begun by then must be the
        same in it. Raises `NotFound` for a step without a snapshot, which says where there is one."""
        request = views.run_fork_request(at, new, before, playbook, inputs)
        return Run(self._transport, self._transport.send(calls.fork_run(self.id, request)))

    def wait(self, timeout_s: float | None = None) -> Run:
        """Returns when the run is at rest: succeeded, failed, cancelled or parked. Waits through restarts of the
        server. Raises `CommandTimeout`; the run itself goes on then."""
        patience, began = Patience(), time.monotonic()
        for wait_s in poll_waits_s():
            try:
                if self.show().state.at_rest:
                    return self
                patience.answered()
            except ServerUnreachable:
                if patience.is_over(time.monotonic()):
                    raise
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise CommandTimeout(f"Run {self.id} is still {self.state} after {timeout_s:g} s.", hint="It goes on.")
            time.sleep(wait_s)
        raise AssertionError("poll_waits_s does not end")

    def events(self, after: int = 0) -> Iterator[wire.RunEvent]:
        """The run's journal from `after` on, entry by entry as it grows; ends when the run is at rest. Goes on by
        itself after a restart of the server, without a gap or a repetition."""
        patience = Patience()
        while True:
            try:
                for event in self._stream(after):
                    patience.answered()
                    if event.seq > after:
                        after = event.seq
                        yield event
                if self.show().state.at_rest and not self._later(after):
                    return
            except (ServerUnreachable, CommandTimeout):
                if patience.is_over(time.monotonic()):
                    raise
            time.sleep(RETRY_S)

    def journal(self) -> list[wire.RunEvent]:
        """All that the run's journal has by now."""
        found: list[wire.RunEvent] = []
        while more := self._later(found[-1].seq if found else 0):
            found += more
        return found

    def _stream(self, after: int) -> Iterator[wire.RunEvent]:
        decoder = EventDecoder()
        with self._transport.stream(calls.run_event_stream(self.id, after)) as response:
            for line in response.iter_lines():
                if (event := decoder.feed(line)) is not None:
                    yield event

    def _later(self, after: int) -> list[wire.RunEvent]:
        """Events that were written between the end of the stream and now."""
        return self._transport.send(calls.run_events(self.id, after)).events


class Questions:
    """What runs ask people: whether something may go on, or what they cannot know. Each is answered once."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, agent: str | None = None) -> list[wire.Question]:
        """Those that are open."""
        return self._transport.send(calls.list_questions(agent)).questions

    def answer(self, question: str, answer: str) -> Run:
        """Answers it for good, and lets its run go on. Raises `NotFound`, `InvalidArgument` for neither yes nor no where that
        is asked, and `Conflict` when somebody was faster (says who), or it is not open any more."""
        with views.refusing():
            request = wire.AnswerRequest(answer=answer)
        return Run(self._transport, self._transport.send(calls.answer_question(question, request)))


class Inbox:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, unread: bool = False) -> list[wire.Message]:
        return self._transport.send(calls.list_messages(unread=unread)).messages

    def read(self, message_id: str) -> wire.Message:
        """The message, which counts as read from now on. Raises `NotFound`."""
        return self._transport.send(calls.read_message(message_id))


class SshKeys:
    """Public keys that the SSH gateway lets in."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def add(self, public_key: str, comment: str | None = None) -> wire.SshKey:
        """`public_key` is the line of a `.pub` file. Raises `InvalidArgument`, `AlreadyExists`."""
        with views.refusing():
            request = wire.SshKeyRequest(public_key=public_key, comment=comment)
        return self._transport.send(calls.add_ssh_key(request))

    def list(self) -> list[wire.SshKey]:
        return (self._transport.send(calls.list_ssh_keys())).keys

    def remove(self, key: str) -> None:
        """By id or fingerprint; connections that came in with it end. Raises `NotFound`."""
        self._transport.send(calls.remove_ssh_key(key))
