"""SQL through an office's door beside the same on its database's socket; waking a database; many of them awake."""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from figures import Figure, timed
from memory import pss_mib
from tenure import Tenure
from tenure.client import Agent
from tenure.postgres.cluster import Cluster
from tenure.postgres.tree import LIBRARIES, PostgresTree
from tenure.settings import Settings

BENCH_S = int(os.environ.get("BENCH_PGBENCH_S", "10"))
TURNS = 3
WAKES = 20
AWAKE = int(os.environ.get("BENCH_DATABASES", "50"))
IDLE_WATCH_S = 30.0
CLIENTS = 4
_TPS = re.compile(r"tps = ([0-9.]+) \(without initial")


class SqlBenchmarks:
    def __init__(self, tenure: Tenure, settings: Settings) -> None:
        self._tenure, self._settings = tenure, settings
        self._tree = PostgresTree(settings.postgres_tree)

    def pgbench(self) -> Iterator[Figure]:
        """Select-only and TPC-B-like, one client and several, inside and outside in turns."""
        agent = self._tenure.agents.create("bench-pgbench", cpus=2)
        try:
            (library,) = (self._tree.root / LIBRARIES).glob("libpq-*.so*")
            agent.upload(self._tree.program("pgbench"), "pgbench")
            agent.upload(library, library.name)
            assert (
                agent.exec("chmod +x pgbench; LD_LIBRARY_PATH=$PWD ./pgbench -i -q -s 5", timeout_s=300).exit_code == 0
            )
            for name, script in (("select-only", "-S"), ("tpcb-like", "-b tpcb-like")):
                for clients in (1, CLIENTS):
                    words = f"-n {script} -c {clients} -T {BENCH_S}"
                    inside, outside = self._in_turns(
                        lambda words=words: self._inside(agent, words), lambda words=words: self._outside(agent, words)
                    )
                    what = f"pgbench {name} through the door, {clients} clients"
                    yield Figure(what, inside, outside, "per s", "≥ 0.3")
        finally:
            agent.delete()

    def _in_turns(self, one: Callable[[], float], other: Callable[[], float]) -> tuple[float, float]:
        pairs = [(one(), other()) for _ in range(TURNS)]
        inside, outside = (statistics.median(column) for column in zip(*pairs, strict=True))
        return inside, outside

    def _inside(self, agent: Agent, words: str) -> float:
        done = agent.exec(f"LD_LIBRARY_PATH=$PWD ./pgbench {words}", timeout_s=BENCH_S + 60)
        assert done.exit_code == 0, done.stderr
        return _rate(done.stdout)

    def _outside(self, agent: Agent, words: str) -> float:
        socket_dir = self._settings.run_dir / "pg" / agent.name
        env = {"PGHOST": str(socket_dir), "PGUSER": "agent", "PGDATABASE": "agent", "PATH": os.defpath}
        argv = [str(self._tree.program("pgbench")), *words.split()]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=BENCH_S + 60, check=True)
        return _rate(done.stdout)

    def waking(self) -> Iterator[Figure]:
        """First connection to a sleeping database at its doorway, beside a bare start of the same cluster and a connection."""
        agent = self._tenure.agents.create("bench-waking", cpus=2)
        try:
            agent.sql("select 1")
            cluster = self._cluster(agent.name)
            woken: list[float] = []
            bare: list[float] = []
            for _ in range(WAKES):
                asyncio.run(cluster.stop())
                woken.append(timed(lambda: agent.sql("select 1")))
                asyncio.run(cluster.stop())
                bare.append(timed(lambda: self._bare(cluster)))
            asyncio.run(cluster.stop())
            inside = [self._woken_inside(agent, cluster) for _ in range(WAKES // 4)]
            floor_ms = statistics.median(bare) * 1000
            yield Figure("wake a database by a statement", statistics.median(woken) * 1000, floor_ms, "ms", "≤ 1.5")
            yield Figure("wake a database by psql in its office", statistics.median(inside), floor_ms, "ms", "–")
        finally:
            agent.delete()

    def _woken_inside(self, agent: Agent, cluster: Cluster) -> float:
        """Milliseconds of psql's whole run, which a run on an awake database is taken off of."""
        asyncio.run(cluster.stop())
        asleep_s = timed(lambda: agent.exec(["psql", "-XAtc", "select 1"]))
        awake_s = timed(lambda: agent.exec(["psql", "-XAtc", "select 1"]))
        return (asleep_s - awake_s) * 1000

    def _cluster(self, name: str) -> Cluster:
        """The same as the server's own: a second one adopts what runs."""
        from tenure.data.office_server import OfficeServer

        volume = self._settings.volumes_dir / name
        uid = (volume / "postgres").stat().st_uid
        return OfficeServer(self._settings, name, volume, uid).cluster

    def _bare(self, cluster: Cluster) -> None:
        asyncio.run(cluster.start())
        with psycopg.connect(host=str(cluster.socket_dir), user="agent", dbname="agent") as connection:
            connection.execute("select 1")

    def databases(self) -> Iterator[Figure]:
        """So many databases awake and idle: memory, and processor time; one of them beside."""
        names = [f"bench-db-{number}" for number in range(AWAKE)]
        try:
            for name in names:
                self._tenure.agents.create(name, asleep=True)
            self._tenure.agents(names[0]).sql("select 1")
            first_mib = sum(map(pss_mib, self._pids()))
            for name in names[1:]:
                self._tenure.agents(name).sql("select 1")
            pids = self._pids()
            all_mib, cpu_s = sum(map(pss_mib, pids)), _cpu_s(pids)
            time.sleep(IDLE_WATCH_S)
            used_s = _cpu_s(self._pids()) - cpu_s
            yield Figure(f"{AWAKE} databases awake", all_mib / AWAKE, first_mib, "MiB each", "≤ 10 MiB")
            yield Figure(
                f"{AWAKE} databases awake and idle", used_s / IDLE_WATCH_S * 60, 60.0, "CPU s a minute", "≤ 0.02"
            )
        finally:
            for name in names:
                self._tenure.agents.get(name).delete()

    def _pids(self) -> list[int]:
        """Processes of offices' databases of this home."""
        volumes, found = os.fsencode(f"{self._settings.volumes_dir}/bench-db-"), list[int]()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if volumes in (entry / "cmdline").read_bytes() or volumes in os.fsencode(
                        (entry / "cwd").readlink()
                    ):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


def _rate(said: str) -> float:
    found = _TPS.search(said)
    assert found is not None, said
    return float(found[1])


def _cpu_s(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
