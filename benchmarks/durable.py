"""`make bench ARGS=durable`: Tenure's durable engine beside DBOS, on one PostgreSQL server, in one run, taking turns.

Each is a process of its own that is told what to do line by line (`tenure_side.py`, `dbos_side.py`). DBOS is installed from
`requirements.lock` into an environment of its own. Tenure's office does nothing, so that the engine is measured and no sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from figures import Figure
from tenure.database import migrate
from tenure.postgres.control import start_control_database, stop_control_database
from tenure.settings import Settings
from tenure.work.claims import LEASE_S

HERE = Path(__file__).parent.absolute()
ENVIRONMENT = HERE / ".dbos"
LOCK = HERE / "requirements.lock"
ROUNDS, STEPS, RUNS = 5, 300, 100
KILLED = (1, 50)
SLOW_STEPS = 200
PARKED = int(os.environ.get("BENCH_PARKED", "10000"))
WAKES = 15
PATIENCE_S = 180.0


class Side:
    """A child that does what it is told."""

    def __init__(self, python: Path, program: str, dsn: str, told: Path, *mode: str) -> None:
        self.told = told
        self.process = subprocess.Popen(
            [str(python), str(HERE / program), dsn, str(told), *mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **arguments: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}.")
        return json.loads(line)

    def kill(self) -> float:
        """The moment of its death."""
        self.process.kill()
        died_at = time.time()
        self.process.wait()
        return died_at

    def first_by(self, pid: int, runs: list[str], after: float) -> list[float]:
        """Seconds from `after` until the process `pid` goes on with each of `runs`."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            found: dict[str, float] = {}
            for line in self.told.read_text().splitlines():
                run, at, who = line.split()
                if int(who) == pid and run in runs:
                    found.setdefault(run, float(at) - after)
            if len(found) == len(runs):
                return sorted(found.values())
            time.sleep(0.05)
        raise SystemExit(f"{len(runs)} runs did not go on within {PATIENCE_S:g} s.")


class DurableBenchmarks:
    def __init__(self, dsn: str, directory: Path, say: Callable[[str], None]) -> None:
        self._dsn, self._directory, self._say = dsn, directory, say
        self._dbos = prepared()
        self._count = 0

    def _database(self, *, migrated: bool) -> str:
        self._count += 1
        name = f"bench{self._count}"
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        dsn = psycopg.conninfo.make_conninfo(self._dsn, dbname=name)
        if migrated:
            migrate(dsn)
        return dsn

    def _url(self, dsn: str) -> str:
        """As SQLAlchemy wants it."""
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
        where = f"host={parts['host']}" + (f"&port={parts['port']}" if "port" in parts else "")
        return f"postgresql://{parts.get('user', '')}@/{parts['dbname']}?{where}"

    @contextlib.contextmanager
    def _sides(self) -> Iterator[tuple[Side, Side]]:
        """Tenure, DBOS: each on an empty database."""
        told = self._directory / f"{self._count}"
        tenure = Side(
            Path(sys.executable), "tenure_side.py", self._database(migrated=True), told.with_suffix(".tenure")
        )
        dbos = Side(self._dbos, "dbos_side.py", self._url(self._database(migrated=False)), told.with_suffix(".dbos"))
        try:
            yield tenure, dbos
        finally:
            for side in (tenure, dbos):
                side.kill()

    def all(self) -> list[Figure]:
        return [*self.engine(), *self.killed(), *self.parked()]

    def engine(self) -> list[Figure]:
        with self._sides() as sides:
            for side in sides:
                side.ask("steps", count=10)
                side.ask("runs", count=2)
            orders = {"steps": STEPS, "parallel": STEPS, "runs": RUNS}
            asked = [(do, count) for _ in range(ROUNDS) for do, count in orders.items()]
            answers = [(do, [side.ask(do, count=count) for side in sides]) for do, count in asked]

        def per_s(do: str, count: int, took: Callable[[Mapping[str, float]], float]) -> list[float]:
            each = zip(
                *([count / took(answer) for answer in both] for name, both in answers if name == do), strict=True
            )
            return [statistics.median(one) for one in each]

        return [
            Figure("steps, one after the other", *per_s("steps", STEPS, lambda a: a["took_s"]), "per s", "–"),
            Figure(f"{STEPS} steps at the same time", *per_s("parallel", STEPS, lambda a: a["took_s"]), "per s", "–"),
            Figure("runs queued (DBOS: started)", *per_s("runs", RUNS, lambda a: a["spawn_s"]), "per s", "–"),
            Figure(
                "runs of one step, whole",
                *per_s("runs", RUNS, lambda a: a["spawn_s"] + a["execute_s"]),
                "per s",
                "–",
            ),
        ]

    def killed(self) -> list[Figure]:
        figures: list[Figure] = []
        for count in KILLED:
            by_dbos = self._killed_dbos(count)
            for reaped in (True, False):
                took = self._killed_tenure(count, reaped=reaped)
                how = "the server reaped it" if reaped else f"its lease of {LEASE_S} s lapsed"
                for which, index in {"first": 0, "last": -1}.items() if count > 1 else {"": -1}.items():
                    what = f"kill -9 → {which} of {count} runs goes on elsewhere: {how}".replace("  ", " ")
                    figures.append(Figure(what, took[index], by_dbos[index], "s", "–"))
        return figures

    def _killed_tenure(self, count: int, *, reaped: bool) -> list[float]:
        dsn, told = self._database(migrated=True), self._directory / f"{self._count}.killed"
        python = Path(sys.executable)
        side = Side(python, "tenure_side.py", dsn, told)
        runs = side.ask("begin_slow", count=count, steps=SLOW_STEPS)["runs"]
        victim = Side(python, "tenure_side.py", dsn, told, "work")
        victim.first_by(victim.process.pid, runs, 0.0)
        heir = Side(python, "tenure_side.py", dsn, told, "work")
        assert heir.process.stdout is not None
        heir.process.stdout.readline()  # it listens
        died_at = victim.kill()
        if reaped:
            side.ask("reaped")
        took = heir.first_by(heir.process.pid, runs, died_at)
        for one in (heir, side):
            one.kill()
        return took

    def _killed_dbos(self, count: int) -> list[float]:
        """Another process is not given the work without DBOS's Conductor: the same executor is started again, at once."""
        url, told = self._url(self._database(migrated=False)), self._directory / f"{self._count}.killed"
        victim = Side(self._dbos, "dbos_side.py", url, told)
        runs = victim.ask("begin_slow", count=count, steps=SLOW_STEPS)["runs"]
        victim.first_by(victim.process.pid, runs, 0.0)
        died_at = victim.kill()
        heir = Side(self._dbos, "dbos_side.py", url, told, "work")
        took = heir.first_by(heir.process.pid, runs, died_at)
        heir.kill()
        return took

    def parked(self) -> list[Figure]:
        with self._sides() as sides:
            parked: list[dict[str, Any]] = []
            for side in sides:
                self._say(f"parking {PARKED} runs")
                parked.append(side.ask("park", count=PARKED))
            wakes = [[side.ask("wake")["took_s"] * 1000 for side in sides] for _ in range(WAKES)]
        memory = [max(one["after_mib"] - one["before_mib"], 0.01) for one in parked]
        return [
            Figure(f"{PARKED} runs parked", *(PARKED / one["took_s"] for one in parked), "per s", "–"),
            Figure(f"memory of {PARKED} parked runs", memory[0], memory[1], "MiB", "–"),
            Figure(
                f"one of {PARKED} parked: answer → its effect begins",
                *(statistics.median(column) for column in zip(*wakes, strict=True)),
                "ms",
                "–",
            ),
        ]


def prepared() -> Path:
    """The Python of DBOS's environment, made anew when the lock changed."""
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / ".lock"
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
        install = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--require-hashes",
            "-r",
            str(LOCK),
        ]
        subprocess.run([str(python), *install], check=True)
        stamp.write_text(digest)
    return python


def measure(names: list[str], say: Callable[[str], None]) -> list[Figure]:
    """`names` are of `DurableBenchmarks`; none means all of them."""
    with tempfile.TemporaryDirectory(prefix="tenure-bench-") as scratch:
        settings = Settings(home=Path(scratch))
        try:
            dsn = asyncio.run(start_control_database(settings))
            benchmarks = DurableBenchmarks(dsn, Path(scratch), say)
            return [figure for name in names or ["all"] for figure in getattr(benchmarks, name)()]
        finally:
            asyncio.run(stop_control_database(settings))


if __name__ == "__main__":
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors", flush=True)
    for figure in measure(sys.argv[1:], print):
        print(
            f"{figure.what:75} {figure.measured:10.2f} {figure.floor:10.2f} {figure.unit:6} {figure.ratio:6.2f}",
            flush=True,
        )
    print(f"load {os.getloadavg()[0]:.1f}")
