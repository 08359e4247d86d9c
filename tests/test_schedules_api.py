"""Schedules over the API, with both SDKs and on the command line."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.api import TOKENS, Api, error_of
from fixtures.cli import Cli
from tenure import AsyncTenure, Tenure, errors
from tenure.client.endpoint import Endpoint

pytest_plugins = ("fixtures.server", "fixtures.cli_process")

PLAYBOOK = "name: look\nsteps:\n  - id: one\n    run: echo hello\n"
WHAT = {"goal": "look", "playbook": PLAYBOOK}
BODY = {"name": "nightly", "agent": "analyst", "cron": "0 3 * * 1-5", "tz": "Europe/Berlin", "what": WHAT}


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"cron": "* * *"}, 422, "invalid_argument"),
        ({"cron": None}, 422, "invalid_argument"),
        ({"every_s": 60}, 422, "invalid_argument"),
        ({"tz": "Mars/Olympus"}, 422, "invalid_argument"),
        ({"tz": "\0"}, 422, "invalid_argument"),
        ({"name": "Bad_Name"}, 422, "invalid_name"),
        ({"agent": "nobody"}, 404, "not_found"),
        ({"kind": "party"}, 422, "invalid_argument"),
        ({"what": {}}, 422, "invalid_argument"),
        ({"what": {"goal": "x\0"}}, 422, "invalid_argument"),
        ({"what": {"goal": "no brain"}}, 422, "invalid_argument"),
        ({"what": {"goal": "x", "playbook": "steps: ["}}, 422, "invalid_playbook"),
        ({"cron": None, "at": "2020-01-01T00:00:00Z"}, 422, "invalid_argument"),
        ({"cron": None, "at": "2040-01-01T00:00:00"}, 422, "invalid_argument"),
        ({"cron": None, "every_s": 10}, 422, "invalid_argument"),
        ({"missed": "some"}, 422, "invalid_argument"),
        ({"jitter_s": 10**9}, 422, "invalid_argument"),
        ({"colour": "red"}, 422, "invalid_argument"),
    ],
)
async def test_schedules_that_make_no_sense_are_refused(
    api: Api, change: dict[str, Any], status: int, code: str
) -> None:
    async with api.client() as owner:
        answer = await owner.post("/v1/schedules", json=BODY | change)
    assert (answer.status_code, error_of(answer)["code"]) == (status, code), answer.text


async def test_a_worker_is_held_to_an_agents_limits(api: Api) -> None:
    async with api.client(TOKENS.worker) as worker, api.client() as owner:
        answer = await worker.post("/v1/schedules", json=BODY | {"cron": "* * * * *"})
        assert "every 5 minutes" in str(error_of(answer)["message"])
        made = (await worker.post("/v1/schedules", json=BODY)).json()
        assert made["created_by"] == "office:analyst"
        assert (
            await owner.post("/v1/schedules", json=BODY | {"name": "often", "cron": "* * * * *"})
        ).status_code == 201
        assert (await worker.delete("/v1/schedules/often")).status_code == 403
        assert (await worker.delete("/v1/schedules/nightly")).status_code == 204


async def test_both_sdks_do_a_schedules_whole_life(api: Api) -> None:
    endpoint = Endpoint("http://tenure", api.socket, TOKENS.owner)

    def life(client: Tenure) -> str:
        made = client.schedules.create(
            "hourly", "analyst", "look", every="1h", playbook=PLAYBOOK, overlap="queue", jitter_s=60
        )
        assert (made.every_s, made.overlap, made.state, made.what["goal"]) == (3600, "queue", "active", "look")
        assert len(made.next_times) == 5
        assert [later - earlier for earlier, later in zip(made.next_times, made.next_times[1:], strict=False)] == [
            timedelta(hours=1)
        ] * 4
        firing = client.schedules.run("hourly")
        assert (firing.state, firing.manual) == ("begun", True)
        assert [one.began for one in client.schedules.firings(made.id)] == [firing.began]
        assert client.runs.get(firing.began).info.agent == "analyst"
        assert client.schedules.pause("hourly").next_times == []
        assert client.schedules.resume("hourly", "analyst").state == "active"
        with pytest.raises(errors.AlreadyExists):
            client.schedules.create("hourly", "analyst", "look", every=7200, playbook=PLAYBOOK)
        return made.id

    def blocking() -> str:
        with Tenure(endpoint=endpoint) as client:
            return life(client)

    made = await asyncio.to_thread(blocking)
    async with AsyncTenure(endpoint=endpoint) as client:
        assert [one.id for one in await client.schedules.list("analyst")] == [made]
        at = datetime(2040, 1, 1, tzinfo=UTC)
        once = await client.schedules.create("once", "analyst", "look", at=at, playbook=PLAYBOOK)
        assert (await client.schedules.get("once")).next_times == [at]
        assert (await client.schedules.run(once.id)).state == "begun"
        for one in (made, once.id):
            await client.schedules.delete(one)
        assert await client.schedules.list() == []
        with pytest.raises(errors.NotFound):
            await client.schedules.get("once")


async def test_the_command_line_does_a_schedules_whole_life(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "look.yaml").write_text(PLAYBOOK)
    plan = ("--goal", "look at it", "--playbook", str(tmp_path / "look.yaml"))
    made = await cli(
        "schedule", "create", "nightly", "analyst", "--cron", "0 3 * * 1-5", "--tz", "Europe/Berlin", *plan
    )
    assert made.code == 0, made.stderr
    schedule_id = made.stdout.decode().strip()
    listed = (await cli("schedule", "list")).stdout.decode()
    assert "0 3 * * 1-5 Europe/Berlin" in listed
    assert "look at it" in listed
    began = (await cli("schedule", "run", "nightly")).stdout.decode().strip()
    assert began.startswith("run_")
    shown = (await cli("schedule", "show", "nightly")).stdout.decode()
    assert began in shown
    assert "by hand" in shown
    assert shown.count(" UTC") >= 6
    assert (await cli("schedule", "pause", schedule_id)).code == 0
    assert "paused" in (await cli("schedule", "show", "nightly")).stdout.decode()
    assert "goes on" in (await cli("schedule", "resume", "nightly")).stdout.decode()
    as_json = json.loads((await cli("schedule", "show", "nightly", "--json")).stdout)
    assert as_json["schedule"]["id"] == schedule_id
    assert (await cli("schedule", "delete", "nightly")).code == 0
    assert (await cli("schedule", "show", "nightly")).code == 3
    for wrong in (("--every", "soon"), ("--at", "then"), ("--every", "1h", "--at", "2040-01-01"), ()):
        refused = await cli("schedule", "create", "x", "analyst", *wrong, *plan)
        assert (refused.code, b"hint:" in refused.stderr or b"exactly one" in refused.stderr) == (2, True), (
            refused.stderr
        )
