"""The main job, as `make demo` runs it: real packages, real data, SIGKILL in the middle, sleep and wake."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tenure import Tenure, wire
from tenure.server import daemon
from tenure.settings import Settings

DEMO_TIMEOUT_S = 1200


@pytest.fixture(scope="module")
def done(new_settings: Callable[[], Settings]) -> Iterator[tuple[Tenure, str]]:
    """A server on which the demo has run, and what the demo printed."""
    settings = new_settings()
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TENURE_HOME": str(settings.home),
        "TENURE_PORT": str(settings.port),
        "COLUMNS": "200",
    }
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "tenure.cli", "demo"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEMO_TIMEOUT_S,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        with Tenure(settings) as tenure:
            yield tenure, ran.stdout
    finally:
        daemon.down(settings)


def test_it_tells_what_happened(done: tuple[Tenure, str]) -> None:
    _, printed = done
    for told in ("SIGKILL to the server and its worker", "none ran again", "still there", "Anomalous days in Seattle"):
        assert told in printed
    assert "GONE" not in printed


def test_no_finished_step_ran_again(done: tuple[Tenure, str]) -> None:
    tenure, _ = done
    (run,) = tenure.runs.list()
    assert run.info.state is wire.RunState.SUCCEEDED
    events = list(run.events())
    finished = Counter(event.step for event in events if event.kind == "step_succeeded")
    assert set(finished.values()) == {1}
    assert {f"score[{year}]" for year in range(2012, 2016)} <= set(finished)
    claims = [event.seq for event in events if event.kind == "run_claimed"]
    assert len(claims) == 2, "the kill was no kill"
    done_before = {event.step for event in events if event.kind == "step_succeeded" and event.seq < claims[1]}
    begun_after = {event.step for event in events if event.kind == "step_started" and event.seq > claims[1]}
    assert any(step.startswith("score[") for step in done_before if step)
    assert not done_before & begun_after


def test_the_results_are_in_database_objects_and_inbox(done: tuple[Tenure, str]) -> None:
    tenure, _ = done
    analyst = tenure.agents.get("analyst")
    assert analyst.sql("select count(*) from weather").rows == [[1461]]
    assert analyst.sql("select count(*) from scores").rows == [[1461]]
    assert analyst.objects.get("reports", "chart.png").startswith(b"\x89PNG\r\n\x1a\n")
    assert "anomalous" in analyst.objects.get("reports", "report.md").decode().lower()
    assert [message.agent for message in tenure.inbox.list()] == ["analyst"]
