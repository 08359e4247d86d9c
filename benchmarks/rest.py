"""Forking, sleeping and waking, and what a thousand sleeping agents cost."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from figures import Figure, in_turns, timed
from floor import BareRunsc
from tenure import Tenure
from tenure.client import Agent
from tenure.server.home import holder
from tenure.settings import Settings

ROUNDS = {"hibernated": 8, "paused": 20, "fork": 5, "probe": 9}
PROBED = ("create asleep", "wake → first command", "delete")
PROBE_PAUSE_S = 1.0
"""As agents are made by people: not in a burst."""
FILES_GB = float(os.environ.get("BENCH_FILES_GB", "5"))
ROWS_GB = float(os.environ.get("BENCH_ROWS_GB", "1"))
SLEEPERS = int(os.environ.get("BENCH_SLEEPERS", "1000"))
AWAKE = 8
ROW_BYTES = 1000
FILL_TIMEOUT_S = 1200
IDLE_WATCH_S = 20.0
SETTLE_S = 5.0


class RestBenchmarks:
    def __init__(self, tenure: Tenure, settings: Settings, floor: BareRunsc, say: Callable[[str], None]) -> None:
        """`say` is told how far it is."""
        self._tenure, self._settings, self._floor, self._say = tenure, settings, floor, say

    def _awake(self, name: str) -> Agent:
        agent = self._tenure.agents.create(name, cpus=2, disk_gb=FILES_GB + 3 * ROWS_GB + 4)
        agent.exec(["/bin/true"], user="root")
        return agent

    # --- waking -------------------------------------------------------------------------------------------------------
    def hibernated(self) -> list[Figure]:
        agent = self._awake("bench-hibernated")

        def once() -> float:
            agent.sleep("hibernated")
            return timed(lambda: agent.exec(["/bin/true"], user="root"))

        figure = Figure(
            "wake from hibernation → first output",
            *in_turns(ROUNDS["hibernated"], once, self._floor.restore_and_exec),
            "ms",
            "≤ 1.5",
        )
        agent.delete()
        return [figure]

    def paused(self) -> list[Figure]:
        agent = self._awake("bench-paused")
        self._floor.run_and_exec()

        def once() -> float:
            agent.sleep("paused")
            return timed(lambda: agent.exec(["/bin/true"], user="root"))

        figure = Figure(
            "wake from paused → first output",
            *in_turns(ROUNDS["paused"], once, self._floor.resume_and_exec),
            "ms",
            "< 60 ms",
        )
        self._floor.delete()
        agent.delete()
        return [figure]

    # --- forking ------------------------------------------------------------------------------------------------------
    def fork(self) -> list[Figure]:
        """Until the fork's first command and first row; both offices at rest in the disk cache, forked in turns."""
        empty, full = self._awake("bench-empty"), self._awake("bench-full")
        self._fill(full)
        empty.sql("CREATE TABLE rows (n int, body text)")
        for agent in (empty, full):  # at rest: else each fork replays what was just written
            agent.sql("CHECKPOINT")

        def forked(agent: Agent) -> Callable[[], float]:
            def once() -> float:
                fork = self._tenure.agents("bench-fork")
                took_s = timed(lambda: (agent.fork("bench-fork"), fork.exec(["/bin/true"]), fork.sql("SELECT 1")))
                fork.delete()
                for snapshot in agent.snapshots.list():
                    agent.snapshots.delete(snapshot.id)
                return took_s

            return once

        of_full, of_empty = in_turns(ROUNDS["fork"], forked(full), forked(empty))
        copied_s = self._copied_s("bench-full")
        dumped_s = self._dumped_s("bench-full", "bench-empty")
        empty.delete()
        full.delete()
        size = f"fork of {FILES_GB:g} GB of files and {ROWS_GB:g} GB of rows"
        return [
            Figure(f"{size}, beside an empty office's", of_full, of_empty, "ms", "≤ 1.5"),
            Figure(f"{size}, beside `cp -a --reflink=never`", of_full, copied_s * 1000, "ms", "–"),
            Figure(f"{size}, beside `pg_dump | pg_restore`", of_full, dumped_s * 1000, "ms", "–"),
        ]

    def _fill(self, agent: Agent) -> None:
        files = max(int(FILES_GB * 1024 / 8), 1)
        script = f"mkdir -p ~/files; for n in $(seq {files}); do head -c 8M /dev/urandom > ~/files/$n; done; sync"
        done = agent.exec(script, timeout_s=FILL_TIMEOUT_S)
        assert done.exit_code == 0, done.stderr
        rows = int(ROWS_GB * 1024**3 / ROW_BYTES)
        agent.sql("CREATE TABLE rows (n int, body text)")
        for at in range(0, rows, 20_000):
            until = min(at + 20_000, rows)
            body = "string_agg(md5(random()::text), '')"
            agent.sql(
                f"INSERT INTO rows SELECT n, (SELECT {body} FROM generate_series(1, {ROW_BYTES // 32}) AS s WHERE n = n) "
                f"FROM generate_series({at}, {until - 1}) AS n"
            )

    def _copied_s(self, agent: str) -> float:
        source = self._settings.volumes_dir / agent / "rootfs" / "home" / "agent"
        with tempfile.TemporaryDirectory(dir=self._settings.pool_dir) as scratch:
            words = ["cp", "-a", "--reflink=never", str(source), f"{scratch}/copy"]
            return timed(lambda: (subprocess.run(words, check=True), os.sync()))

    def _dumped_s(self, source: str, target: str) -> float:
        """From the database of one office into that of another."""
        (programs,) = self._settings.postgres_tree.glob("*/pginstall/bin")
        self._tenure.agents(source).sql("SELECT 1")
        self._tenure.agents(target).sql("DROP TABLE rows")
        sockets = self._settings.run_dir / "pg"
        dump = f"{programs}/pg_dump -Fc -h {sockets}/{source} -U agent -t rows agent"
        restore = f"{programs}/pg_restore -h {sockets}/{target} -U agent -d agent"
        words = ["bash", "-o", "pipefail", "-c", f"{dump} | {restore}"]
        return timed(lambda: subprocess.run(words, check=True, timeout=FILL_TIMEOUT_S))

    # --- scale to zero ------------------------------------------------------------------------------------------------
    def sleepers(self) -> Iterator[Figure]:
        """Figures come as they are measured: a run that is cut short keeps those that it has."""
        title = f"with {SLEEPERS} sleeping agents beside none"
        memory_before, cpu_before = self._at_rest()
        self._say(f"none asleep: {memory_before:.1f} MiB, {cpu_before * 1000:.2f} ms/s")
        alone = self._create_and_delete()
        names = [f"bench-asleep-{n}" for n in range(SLEEPERS)]
        try:
            few = max(SLEEPERS // 10, 1)
            costs = [self._created(names[at : at + few]) for at in range(0, SLEEPERS, few)]
            (first, cpu_first), (last, cpu_last) = costs[0], costs[-1]
            title_of_create = f"create asleep: last {few} of {SLEEPERS} beside the first {few}"
            yield Figure(title_of_create, last, first, "ms", "≤ 1.5")
            yield Figure(f"{title_of_create}, processor", cpu_last, cpu_first, "ms", "≤ 1.5")
            memory, cpu = self._at_rest()
            yield Figure(f"server {title}: memory", memory, memory_before, "MiB", "–")
            yield Figure(f"server {title}: idle processor", cpu * 1000, max(cpu_before * 1000, 0.001), "ms/s", "–")
            listed = statistics.median(timed(self._tenure.agents.list) for _ in range(5)) * 1000
            yield Figure(f"listing {SLEEPERS} sleeping agents", listed, SLEEPERS, "ms", "≤ 1 ms each")
            for what, measured, floor in zip(PROBED, self._create_and_delete(), alone, strict=True):
                yield Figure(f"{what} {title}", measured, floor, "ms", "≤ 1.5")
        finally:
            self._deleted(names)

    def _created(self, names: list[str]) -> tuple[float, float]:
        """Milliseconds that each took, and of the server's processor time, which says more on a machine with other work."""
        pids = _family(holder(self._settings) or 0)
        cpu_before_s = sum(map(_cpu_s, pids))
        took_s = timed(lambda: [self._tenure.agents.create(name, asleep=True) for name in names])
        each_ms, cpu_ms = (1000 * s / len(names) for s in (took_s, sum(map(_cpu_s, pids)) - cpu_before_s))
        self._say(f"{names[-1]} created: {each_ms:.0f} ms each, {cpu_ms:.0f} ms of processor")
        return each_ms, cpu_ms

    def _deleted(self, names: list[str]) -> None:
        """However far the creating came."""
        there = {agent.name for agent in self._tenure.agents.list()} & set(names)
        took_s = timed(lambda: [self._tenure.agents(name).delete() for name in there])
        self._say(f"{len(there)} deleted in {took_s:.0f} s; btrfs frees their blocks in the background")

    def _create_and_delete(self) -> tuple[float, float, float]:
        """Medians in milliseconds: until there is an agent asleep, from then until its first answer, until it is gone."""
        created, woken, deleted = [], [], []
        for n in range(ROUNDS["probe"]):
            name = f"bench-probe-{n}"
            agent = self._tenure.agents(name)
            time.sleep(PROBE_PAUSE_S)
            created.append(timed(lambda name=name: self._tenure.agents.create(name, asleep=True)))
            woken.append(timed(lambda agent=agent: agent.exec(["/bin/true"], user="root")))
            deleted.append(timed(agent.delete))
        return tuple(statistics.median(times) * 1000 for times in (created, woken, deleted))  # type: ignore[return-value]

    def _at_rest(self) -> tuple[float, float]:
        """MiB of the server and its worker and database, and processors that they take while nobody asks for anything."""
        time.sleep(SETTLE_S)
        pids = _family(holder(self._settings) or 0)
        before, began = sum(map(_cpu_s, pids)), time.monotonic()
        time.sleep(IDLE_WATCH_S)
        cpu = (sum(map(_cpu_s, pids)) - before) / (time.monotonic() - began)
        return sum(map(_pss_mib, pids)), cpu

    def awake(self) -> list[Figure]:
        """How many offices that do nothing fit into a GiB, beside bare runsc sandboxes."""
        agents = [self._awake(f"bench-awake-{n}") for n in range(AWAKE)]
        time.sleep(SETTLE_S)
        each = sum(self._office_mib(agent.name) for agent in agents) / AWAKE
        for agent in agents:
            agent.delete()
        self._floor.run_and_exec()
        bare = sum(_pss_mib(pid) for pid in self._floor.pids())
        self._floor.delete()
        return [Figure("awake offices per GiB", 1024 / each, 1024 / bare, "", "–")]

    def _office_mib(self, name: str) -> float:
        root = os.fsencode(f"{self._settings.runsc_root}/{name}/")
        return sum(_pss_mib(pid) for pid in _pids() if root in _command(pid))


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _family(pid: int) -> list[int]:
    """The process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for other in _pids():
        try:
            parent = int(Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(other)
    found = [pid]
    for one in found:
        found.extend(parents.get(one, []))
    return found


def _pss_mib(pid: int) -> float:
    """Memory of a process, what it shares divided among those that share it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
