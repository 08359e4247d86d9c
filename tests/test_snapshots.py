"""A snapshot is the whole office at one instant; restore puts all of it back and can be undone; a fork is another agent."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fixtures.killer import Killer
from fixtures.live import Live, is_running
from tenure import wire
from tenure.client import Agent, calls
from tenure.errors import (
    AlreadyExists,
    Conflict,
    InvalidArgument,
    InvalidName,
    NotFound,
    ServerUnreachable,
    TenureError,
)
from tenure.postgres import process

WRITERS = 2
WRITER = r"""
import os, subprocess, sys, urllib.request
me = sys.argv[1]
psql = subprocess.Popen(["psql", "-qAtX"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
def ask(statement):
    psql.stdin.write(statement + ";\n")
    psql.stdin.flush()
    return psql.stdout.readline()
def put(n):
    request = urllib.request.Request(f"http://s3:9000/counted-{me}/{n}", data=str(n).encode(), method="PUT")
    urllib.request.urlopen(request).read()
os.makedirs(f"counted-{me}")
n = 0
while True:  # in this order; nothing is synced by us
    n += 1
    assert ask(f"insert into counted values ('{me}', {n}) returning n") == f"{n}\n"
    with open(f"counted-{me}/{n}", "w") as file:
        file.write(str(n) * 100)
    put(n)
    with open(f"progress-{me}.new", "w") as file:
        file.write(str(n))
    os.rename(f"progress-{me}.new", f"progress-{me}")
"""
CHAIN = r"""
import os
os.makedirs("links")
with open("chain", "ab", buffering=0) as file:
    for n in range(200_000):  # a snapshot of what is not frozen has later links, and not what was written before them
        file.write(b"x" * 4096)
        os.mkdir(f"links/{n}")
"""
SNAPSHOTS = 3
WRITES_BETWEEN = 5
UPLOADS = 48
UPLOAD_STEP_S = 0.03
WAIT_S = 60.0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def fill(agent: Agent, word: str) -> None:
    """A file, a row and an object that say `word`."""
    assert agent.exec(f"echo {word} > ~/word && sync").exit_code == 0
    agent.sql(f"create table if not exists word (word text); delete from word; insert into word values ('{word}')")
    agent.objects.put("words", "word", word)


def words(agent: Agent) -> set[str]:
    """What its file, row and object say."""
    file = agent.exec("cat ~/word").stdout.strip()
    return {file, agent.sql("select word from word").rows[0][0], agent.objects.get("words", "word").decode()}


def write_on(agent: Agent) -> None:
    """Waits until each writer has come further than any had when this began."""

    def progress() -> list[int]:
        log = agent.exec("cat *.log").stdout
        assert not log, log
        return [int(agent.exec(f"cat progress-{writer} || echo 0").stdout) for writer in range(WRITERS)]

    goal = max(progress()) + WRITES_BETWEEN
    wait_until(lambda: min(progress()) > goal)


def counted(fork: Agent, writer: int) -> int:
    """How far a writer had come in a snapshot; fails when its rows, files and objects do not agree."""
    files = sorted(int(name) for name in fork.exec(f"ls counted-{writer}").stdout.split())
    rows = [row[0] for row in fork.sql(f"select n from counted where w = {writer} order by n", rows_max=10_000).rows]
    objects = sorted(int(item.name) for item in fork.objects.list(f"counted-{writer}"))
    for found in (rows, files, objects):
        assert found == list(range(1, len(found) + 1))
    # A write goes on from the row to the file to the object: none is ahead of the one before it.
    assert len(objects) <= len(files) <= len(rows) <= len(objects) + 1
    sizes = fork.exec(f"cd counted-{writer} && wc -c *").stdout.splitlines()
    whole = {int(name) for size, name in map(str.split, sizes) if name != "total" and int(size) == 100 * len(name)}
    assert whole >= set(objects)
    assert int(fork.exec(f"cat progress-{writer}").stdout) in (len(objects) - 1, len(objects))
    return len(rows)


def host_key(agent: Agent) -> str:
    return agent.exec("cat /etc/ssh/ssh_host_ed25519_key.pub", user="root").stdout


def database_uid(live: Live, agent: Agent) -> int:
    return (live.settings.volumes_dir / agent.name / "postgres").stat().st_uid


@pytest.fixture(scope="module")
def agent(live: Live) -> Agent:
    return live.agent("origin")


def test_restore_is_consistent(live: Live) -> None:
    """In each snapshot of a busy office, rows, files and objects agree up to the one write in flight."""
    busy = live.agent("busy")
    busy.sql("create table counted (w int, n int, primary key (w, n))")
    busy.exec(["tee", "writer.py"], stdin=WRITER)
    busy.exec(["tee", "chain.py"], stdin=CHAIN)
    busy.exec("nohup python3 chain.py > chain.log 2>&1 &")
    for writer in range(WRITERS):
        busy.exec(f"nohup python3 writer.py {writer} > writer-{writer}.log 2>&1 &")
    taken: list[wire.Snapshot] = []
    for _ in range(SNAPSHOTS):
        write_on(busy)
        taken.append(busy.snapshots.create())
    write_on(busy)
    busy.sleep()
    seen: list[list[int]] = []
    for snapshot in taken:
        fork = busy.fork(live.name("look"), snapshot=snapshot.id)
        seen.append([counted(fork, writer) for writer in range(WRITERS)])
        links, blocks = fork.exec("ls links | wc -l; stat -c %s chain").stdout.split()
        assert int(links) * 4096 <= int(blocks)
        fork.delete()
    for earlier, later in itertools.pairwise(seen):
        assert all(before < after for before, after in zip(earlier, later, strict=True))
    busy.delete()
    assert not (live.settings.snapshots_dir / busy.name).exists()


def test_restore_brings_back_files_rows_and_objects_and_can_be_undone(agent: Agent) -> None:
    fill(agent, "first")
    agent.snapshots.create("first")
    fill(agent, "second")
    done = agent.snapshots.restore("first")
    assert done.agent.state == "awake"
    assert done.before.kind == "before-restore"
    assert words(agent) == {"first"}
    agent.snapshots.restore(done.before.id)
    assert words(agent) == {"second"}
    assert agent.snapshots.create().parent == done.before.id


def test_an_object_stored_during_a_restore_is_in_the_new_office_or_the_old_one_or_refused(agent: Agent) -> None:
    agent.objects.put("straddling", "first", "x")
    target = agent.snapshots.create()
    restored = threading.Event()

    def upload(number: int) -> str | None:
        def trickle() -> Iterator[bytes]:  # begins before the restore; they end one after another, during it and later
            for _ in range(number) if number else itertools.count():
                if restored.is_set():
                    return
                yield b"x"
                time.sleep(UPLOAD_STEP_S)

        try:
            agent.objects.put("straddling", str(number), trickle())
        except TenureError:
            return None
        return f"straddling/{number}"

    with ThreadPoolExecutor(UPLOADS) as pool:
        uploads = [pool.submit(upload, number) for number in range(UPLOADS)]
        wait_until(lambda: any(one.done() for one in uploads))
        before = agent.snapshots.restore(target.id).before
        restored.set()
        agent.objects.put("straddling", "last", "x")
        confirmed = {one.result(WAIT_S) for one in uploads} - {None}
    now = {f"straddling/{item.name}" for item in agent.objects.list("straddling")}
    entries = agent.snapshots.diff(before.id, tables=False).entries
    then = {entry.path for entry in entries if (entry.kind, entry.change) == ("object", "removed")}
    assert confirmed <= then | now
    assert "straddling/0" not in confirmed
    assert {"straddling/first", "straddling/last"} <= now


def test_an_office_asleep_is_snapshotted_and_restored_asleep(agent: Agent) -> None:
    fill(agent, "third")
    agent.sleep()
    taken = agent.snapshots.create()
    assert agent.show().state == "stopped"
    fill(agent, "fourth")
    agent.sleep()
    assert agent.snapshots.restore(taken.id).agent.state == "stopped"
    assert words(agent) == {"third"}


def test_a_fork_is_another_agent_with_the_same_things(live: Live, agent: Agent) -> None:
    fill(agent, "shared")
    fork = agent.fork(live.name("fork"))
    assert (fork.show().limits, fork.show().egress) == (agent.show().limits, agent.show().egress)
    assert words(fork) == {"shared"}
    fill(fork, "own")
    assert words(agent) == {"shared"}
    assert words(fork) == {"own"}  # both databases run
    assert fork.exec("hostname").stdout.strip() == fork.name
    assert host_key(fork)
    assert host_key(fork) != host_key(agent)
    assert database_uid(live, fork) != database_uid(live, agent)
    owners = {path.lstat().st_uid for path in (live.settings.volumes_dir / fork.name / "postgres").rglob("*")}
    assert owners == {database_uid(live, fork)}
    fork.sleep()
    assert words(agent) == {"shared"}
    fork.delete()
    assert words(agent) == {"shared"}


def test_a_fork_outlives_its_snapshot_and_its_origin(live: Live) -> None:
    origin = live.agent("parent")
    fill(origin, "inherited")
    origin.snapshots.create("will")
    fork = origin.fork(live.name("heir"), snapshot="will")
    origin.snapshots.delete("will")
    assert [one.name for one in origin.snapshots.list()] == []
    origin.delete()
    assert words(fork) == {"inherited"}
    fork.delete()


def test_the_list_says_what_deleting_a_snapshot_would_free(live: Live, agent: Agent) -> None:
    agent.exec("head -c 20000000 /dev/urandom > large && sync")
    with_large = agent.snapshots.create()
    agent.exec("rm large && sync")
    without = agent.snapshots.create()
    deadline = time.monotonic() + WAIT_S
    alone: dict[str, int] = {}
    while alone.get(with_large.id, 0) < 20_000_000 and time.monotonic() < deadline:
        os.sync()  # what the kernel has counted it says a little later
        alone = {one.id: one.exclusive_bytes or 0 for one in agent.snapshots.list()}
    assert alone[with_large.id] >= 20_000_000
    assert alone[without.id] < 20_000_000


def test_diff_tells_files_and_objects_by_name(agent: Agent) -> None:
    agent.exec("mkdir -p d && echo 1 > d/kept && echo 1 > d/gone && echo 1 > d/grows && ln -s /etc d/link && sync")
    agent.objects.put("words", "gone", "x")
    old = agent.snapshots.create()
    agent.exec("rm d/gone d/link; echo 2 >> d/grows; mkdir d/link; echo 1 > d/link/new; sync")
    agent.objects.delete("words", "gone")
    agent.objects.put("words", "new/one", "x")
    new = agent.snapshots.create()
    for found in (agent.snapshots.diff(old.id, new.id), agent.snapshots.diff(old.id)):
        entries = {(entry.kind, entry.path): entry.change for entry in found.entries}
        assert entries.pop(("object", "words/gone")) == "removed"
        assert entries.pop(("object", "words/new/one")) == "added"
        assert {path: change for (_, path), change in entries.items() if path.startswith("/home/agent/d")} == {
            "/home/agent/d/gone": "removed",
            "/home/agent/d/grows": "changed",
            "/home/agent/d/link": "changed",
            "/home/agent/d/link/new": "added",
        }
        assert not found.truncated
    assert agent.snapshots.diff(old.id, old.id).entries == []


def test_diff_tells_rows_while_the_office_goes_on_and_leaves_nothing_behind(live: Live, agent: Agent) -> None:
    agent.sql(
        "create table ledger (id int primary key, sum int); insert into ledger select n, n from generate_series(1, 9) n"
    )
    old = agent.snapshots.create()
    agent.sql(
        "delete from ledger where id = 1; update ledger set sum = 0 where id = 2; insert into ledger values (10, 10)"
    )
    new = agent.snapshots.create()
    agent.sql("insert into ledger values (11, 11)")
    for to, rows_added in ((new.id, 1), (None, 2)):
        database = agent.snapshots.diff(old.id, to).database
        assert database is not None
        assert database.problem is None
        (table,) = database.tables
        assert (table.in_schema, table.name, table.change) == ("public", "ledger", "changed")
        assert (table.rows_added, table.rows_removed, table.rows_changed) == (rows_added, 1, 1)
    assert agent.snapshots.diff(old.id, tables=False).database is None
    assert agent.sql("select count(*) from ledger").rows == [[10]]
    assert leftovers(live) == []


def test_a_comparison_holds_up_nobody_and_ends_with_its_agent(live: Live) -> None:
    large = live.agent("large")
    large.sql("create table t (id int primary key, n int); insert into t select n, 1 from generate_series(1, 400000) n")
    old = large.snapshots.create()
    large.sql("update t set n = 2")
    with ThreadPoolExecutor(1) as pool:
        comparing = pool.submit(large.snapshots.diff, old.id)
        reader = live.settings.volumes_dir / f".now-{large.name}" / "postgres" / "postmaster.pid"
        wait_until(lambda: comparing.done() or process.says_ready(reader.parent))
        with pytest.raises(Conflict, match="Another comparison"):
            large.snapshots.diff(old.id)
        assert large.snapshots.create().id in [one.id for one in large.snapshots.list()]
        large.snapshots.delete(old.id)
        assert not comparing.done()
        large.delete()
        with pytest.raises(Conflict, match="was ended"):
            comparing.result(WAIT_S)
    assert not [path for path in leftovers(live) if large.name in path.name]


def test_what_does_not_exist_or_cannot_be_is_a_clear_error(live: Live, agent: Agent) -> None:
    agent.snapshots.create("taken")
    with pytest.raises(AlreadyExists, match="taken"):
        agent.snapshots.create("taken")
    with pytest.raises(InvalidName):
        agent.snapshots.create("Not A Name")
    for missing in ("snap_000000000000", "nothing"):
        for use in (agent.snapshots.restore, agent.snapshots.delete, agent.snapshots.diff):
            with pytest.raises(NotFound, match=missing):
                use(missing)
        with pytest.raises(NotFound, match=missing):
            agent.fork(live.name("never"), snapshot=missing)
    with pytest.raises(InvalidArgument):
        agent.snapshots.restore("../../etc")
    with pytest.raises(NotFound, match="nobody"):
        live.tenure.agents("nobody").snapshots.create()
    before = len(agent.snapshots.list())
    with pytest.raises(AlreadyExists):
        agent.fork(agent.name)
    with pytest.raises(InvalidName):
        agent.fork("Not_A_Name")
    assert len(agent.snapshots.list()) == before


def test_an_agent_at_work_is_not_restored_and_its_snapshots_know_the_run(live: Live, agent: Agent) -> None:
    run = agent.run("wait", playbook="name: wait\nsteps:\n  - id: wait\n    run: sleep 100\n")
    wait_until(lambda: run.show().state is wire.RunState.RUNNING)
    taken = agent.snapshots.create()
    assert list(taken.runs) == [run.id]
    assert 0 < taken.runs[run.id] <= max(event.seq for event in run.journal())
    with pytest.raises(Conflict, match=run.id) as refused:
        agent.snapshots.restore(taken.id)
    assert "tenure runs cancel" in refused.value.hint
    # The run itself may go back to a snapshot of one of its steps.
    mark = wire.StepMark(run=run.id, node="wait", verified=True)
    send = live.tenure.agents._transport.send  # pyright: ignore[reportPrivateUsage]
    after_step = send(calls.take_snapshot(agent.name, wire.SnapshotRequest(kind="after-step", step=mark)))
    assert (after_step.kind, after_step.step, list(after_step.runs)) == ("after-step", mark, [run.id])
    assert agent.snapshots.list()[-1].step == mark
    with pytest.raises(InvalidArgument, match="names a step"):
        send(calls.take_snapshot(agent.name, wire.SnapshotRequest(kind="before-step")))
    by_another = wire.RestoreRequest(by_run="run_another")
    with pytest.raises(Conflict, match=run.id):
        send(calls.restore_snapshot(agent.name, after_step.id, by_another))
    itself = wire.RestoreRequest(by_run=run.id)
    assert send(calls.restore_snapshot(agent.name, after_step.id, itself)).snapshot.id == after_step.id
    run.cancel()
    run.wait(WAIT_S)
    agent.snapshots.restore(taken.id)


def test_the_snapshots_of_an_office_are_closed_to_other_users(live: Live, agent: Agent) -> None:
    taken = agent.snapshots.create()
    assert (live.settings.snapshots_dir / agent.name / taken.id / "rootfs").exists()
    assert live.settings.snapshots_dir.stat().st_mode & 0o077 == 0


# --- killed in the middle ------------------------------------------------------------------------------------------------
def leftovers(live: Live) -> list[Path]:
    """Volumes in the making, and what throw-away databases listened on."""
    places = [live.settings.snapshots_dir / name for name in (".staged", ".replaced")]
    found = [path for place in places if place.exists() for path in place.iterdir()]
    for directory in (live.settings.volumes_dir, live.settings.run_dir / "pg"):
        found += [path for path in directory.iterdir() if path.name.startswith((".then-", ".now-"))]
    return found


def kill_below(live: Live, agent: Agent) -> None:
    """SIGKILL to the sandbox of an office and to its PostgreSQL, as when memory runs out."""
    for pid in live.sandbox_pids(agent.name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os.kill(int((live.settings.volumes_dir / agent.name / "postgres" / "postmaster.pid").read_text().split()[0]), 9)


def test_whoever_is_killed_in_a_snapshot_restore_fork_or_diff_all_of_it_is_done_or_nothing(
    live: Live, agent: Agent, killer: Killer
) -> None:
    """Every stage between the volumes' moves is killed in `test_clones.py`; here each call, with rows and offices."""
    killer.up("snapshot.copied:1:stop", "restore.begun:1:stop", "snapshot.copied:3:kill")
    fill(agent, "first")
    with ThreadPoolExecutor(1) as pool:
        # The sandbox and the database die while a snapshot is taken: it is whole, and the office comes back.
        taking = pool.submit(agent.snapshots.create)
        with killer.stopped("snapshot.copied:1:stop"):
            kill_below(live, agent)
        first = taking.result(WAIT_S)
        assert words(agent) == {"first"}
        # They die while a restore begins: what was there is kept, and the office is as it was in the snapshot.
        fill(agent, "second")
        restoring = pool.submit(agent.snapshots.restore, first.id)
        with killer.stopped("restore.begun:1:stop"):
            kill_below(live, agent)
        before = restoring.result(WAIT_S).before
    assert words(agent) == {"first"}

    pid = agent.exec("nohup sleep 1000 >/dev/null 2>&1 & echo $!").stdout.strip()
    there = [one.id for one in agent.snapshots.list()]
    with pytest.raises(ServerUnreachable):
        agent.snapshots.create("half")  # the office is frozen at this point
    killer.died("snapshot.copied:3:kill")

    killer.up("restore.moved-away:1:kill")
    assert agent.exec(f"kill -0 {pid}").exit_code == 0  # it goes on, and was not restarted
    assert [one.id for one in agent.snapshots.list()] == there
    assert sorted(path.name for path in (live.settings.snapshots_dir / agent.name).iterdir()) == sorted(there)
    with pytest.raises(TenureError):
        agent.snapshots.restore(before.id)
    killer.died("restore.moved-away:1:kill")

    killer.up("restore.staged:1:kill")
    assert words(agent) == {"second"}
    assert leftovers(live) == []
    undo = agent.snapshots.list()[-1]
    assert undo.kind == "before-restore"
    name = live.name("half")
    with pytest.raises(ServerUnreachable):
        agent.fork(name, snapshot=undo.id)
    killer.died("restore.staged:1:kill")

    killer.up("diff.reading:1:kill")
    fork = live.tenure.agents.get(name)
    assert words(fork) == {"first"}
    assert host_key(fork) != host_key(agent)
    fork.delete()
    with pytest.raises(ServerUnreachable):
        agent.snapshots.diff(before.id)
    killer.died("diff.reading:1:kill")
    readers = [int((place / "postgres/postmaster.pid").read_text().split()[0]) for place in leftovers(live)[:2]]
    assert all(map(is_running, readers))

    killer.up()
    assert not any(map(is_running, readers))
    assert leftovers(live) == []
    assert words(agent) == {"second"}
