"""`make bench`: each figure beside its floor, measured in turns in one run. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import durable
from figures import Figure, in_turns, timed
from floor import BareRunsc
from rest import RestBenchmarks
from sql import SqlBenchmarks
from tenure import Tenure
from tenure.client import Agent
from tenure.server import daemon
from tenure.settings import Settings
from tenure.setup import current_image, install

ROUNDS = {"create": 8, "wake": 8, "exec": 40, "sql": 2000, "steps": 100}
OF_REST = ("hibernated", "paused", "fork", "sleepers", "awake")
OF_SQL = ("pgbench", "waking", "databases")
DURABLE = "durable"
STEPS_RUN_WAIT_S = 300.0

SQL_PROGRAM = """
import statistics, sys, time, psycopg
connection = psycopg.connect(autocommit=True)
times = []
for n in range(int(sys.argv[1]) + 200):
    began = time.perf_counter()
    connection.execute("select 1").fetchone()
    times.append(time.perf_counter() - began)
print(statistics.median(times[200:]))
"""


class Benchmarks:
    def __init__(self, tenure: Tenure, settings: Settings, floor: BareRunsc) -> None:
        self._tenure, self._settings, self._floor = tenure, settings, floor

    def _create(self, name: str) -> Agent:
        agent = self._tenure.agents.create(name, cpus=2)
        agent.exec(["/bin/true"], user="root")
        return agent

    def _floor_boot(self) -> float:
        took_s = self._floor.run_and_exec()
        self._floor.delete()
        return took_s

    def create(self) -> Figure:
        names = iter(range(1000))

        def once() -> float:
            name = f"bench-{next(names)}"
            took_s = timed(lambda: self._create(name))
            self._tenure.agents.get(name).delete()
            return took_s

        return Figure("create → first command", *in_turns(ROUNDS["create"], once, self._floor_boot), "ms", "≤ 1.5")

    def wake(self) -> Figure:
        agent = self._create("bench-wake")

        def once() -> float:
            agent.sleep()
            return timed(lambda: agent.exec(["/bin/true"], user="root"))

        figure = Figure("wake → first command", *in_turns(ROUNDS["wake"], once, self._floor_boot), "ms", "≤ 1.5")
        agent.delete()
        return figure

    def exec(self) -> Figure:
        agent = self._create("bench-exec")
        self._floor.run_and_exec()
        measured = in_turns(
            ROUNDS["exec"], lambda: timed(lambda: agent.exec(["/bin/true"], user="root")), self._floor.exec
        )
        self._floor.delete()
        agent.delete()
        return Figure("exec on an awake office", *measured, "ms", "≤ 1.0")

    def sql(self) -> Figure:
        agent = self._tenure.agents.create("bench-sql", cpus=2, egress=["pip"])
        installed = agent.exec("pip install -q 'psycopg[binary]'", timeout_s=300)
        assert installed.exit_code == 0, installed.stderr
        agent.sql("select 1")
        inside = agent.exec(["python3", "-c", SQL_PROGRAM, str(ROUNDS["sql"])], timeout_s=120)
        assert inside.exit_code == 0, inside.stderr
        direct = self._direct_sql("bench-sql")
        agent.delete()
        return Figure("SQL round trip through the door", float(inside.stdout) * 1000, direct * 1000, "ms", "≤ 0.5 ms")

    def _direct_sql(self, agent: str) -> float:
        socket_dir = self._settings.run_dir / "pg" / agent
        with psycopg.connect(host=str(socket_dir), user="agent", dbname="agent", autocommit=True) as connection:
            times = [timed(lambda: connection.execute("select 1").fetchone()) for _ in range(ROUNDS["sql"] + 200)]
        return statistics.median(times[200:])

    def steps(self) -> Figure:
        agent = self._tenure.agents.create("bench-steps", cpus=2)
        count = ROUNDS["steps"]
        steps = "\n".join(f"  - id: s{n}\n    sql: select {n}" for n in range(count))
        agent.sql("select 1")
        began = time.perf_counter()
        run = agent.run("as many steps as possible", playbook=f"name: steps\nsteps:\n{steps}\n").wait(STEPS_RUN_WAIT_S)
        took_s = time.perf_counter() - began
        assert run.info.state == "succeeded", run.info
        agent.delete()
        return Figure("durable SQL steps", count / took_s, self._inserts_per_s(), "per s", "–")

    def _inserts_per_s(self) -> float:
        from tenure.postgres.control import control_dsn

        with psycopg.connect(control_dsn(self._settings), autocommit=True) as connection:
            connection.execute("CREATE TABLE bench_floor (n int primary key, body text)")
            try:
                began = time.perf_counter()
                for n in range(1000):
                    connection.execute("INSERT INTO bench_floor VALUES (%s, %s)", (n, "x" * 200))
                return 1000 / (time.perf_counter() - began)
            finally:
                connection.execute("DROP TABLE bench_floor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", choices=[*ROUNDS, *OF_REST, *OF_SQL, DURABLE, []], help="which (all when none is named)"
    )
    names = parser.parse_args().names or [*ROUNDS, *OF_REST, *OF_SQL, DURABLE]
    console = Console()
    results = Results(console)
    if offices := [name for name in names if name != DURABLE]:
        measure_offices(offices, console, results)
    if DURABLE in names:
        for figure in durable.measure([], console.print):
            results.add(figure)
    results.show()


def measure_offices(names: list[str], console: Console, results: Results) -> None:
    settings = Settings.from_environment()
    install(settings, console)
    was_running = daemon.is_running(settings)
    daemon.up(settings, foreground=False)
    with tempfile.TemporaryDirectory(dir=settings.pool_dir) as scratch:
        root = Path(scratch) / "rootfs"
        os.system(f"cp -a --reflink=auto {current_image(settings).path}/rootfs {root}")
        floor = BareRunsc(root)
        with Tenure(settings) as tenure, Progress(console=console, transient=True) as progress:
            benchmarks, of_rest = (
                Benchmarks(tenure, settings, floor),
                RestBenchmarks(tenure, settings, floor, progress.console.print),
            )
            of_sql = SqlBenchmarks(tenure, settings)
            for name in progress.track(names, description="measuring"):
                several = of_rest if name in OF_REST else of_sql if name in OF_SQL else None
                for figure in getattr(several, name)() if several else [getattr(benchmarks, name)()]:
                    results.add(figure)
        floor.close()
    if not was_running:
        daemon.down(settings)


class Results:
    """Figures, printed and saved as soon as each is measured."""

    def __init__(self, console: Console) -> None:
        self._console, self._figures, self._began_at = console, list[Figure](), datetime.now(UTC)

    def add(self, figure: Figure) -> None:
        self._figures.append(figure)
        self._console.print(
            f"{figure.what}: {figure.measured:.2f} {figure.unit}, beside {figure.floor:.2f}: {figure.ratio:.2f}"
        )
        directory = Path("bench-results")
        directory.mkdir(exist_ok=True)
        rows = [{**asdict(figure), "ratio": figure.ratio} for figure in self._figures]
        content = {"at": self._began_at.isoformat(), "cores": os.cpu_count(), "figures": rows}
        (directory / f"{self._began_at:%Y%m%dT%H%M%SZ}.json").write_text(json.dumps(content, indent=2))

    def show(self) -> None:
        table = Table("", "measured", "floor", "ratio", "aim", title=f"{os.cpu_count()} cores, {platform.release()}")
        for figure in self._figures:
            measured = f"{figure.measured:.2f} {figure.unit}"
            table.add_row(figure.what, measured, f"{figure.floor:.2f}", f"{figure.ratio:.2f}", figure.aim)
        self._console.print(table)


if __name__ == "__main__":
    main()
