"""A delivery by HTTP is in the database of an office that sleeps, and a goal that is due wakes one."""

from __future__ import annotations

import time

import httpx

from fixtures.live import Live

PLAYBOOK = "name: look\nsteps:\n  - id: one\n    run: echo worked > from-schedule\n"
PATIENCE_S = 90.0


def test_a_sleeping_office_receives_a_delivery_and_sees_it_by_sql(live: Live) -> None:
    agent = live.agent("hooked")
    hook = live.tenure.webhooks.create("orders", agent.name, signature="none")
    agent.sleep()
    address = f"http://127.0.0.1:{live.settings.port}{hook.path}"
    for _ in range(2):
        answer = httpx.post(
            address,
            json={"order": 17},
            headers={"Webhook-Id": "order-17", "Host": "hooks.example.com"},
            timeout=PATIENCE_S,
        )
        assert answer.status_code in (200, 202), answer.text
    deadline = time.monotonic() + PATIENCE_S
    while live.tenure.webhooks.get(hook.id).waiting and time.monotonic() < deadline:
        time.sleep(0.1)
    assert agent.show().state != "awake", "the database is enough for it"
    told = agent.exec("psql -At -c \"select hook, json->>'order', dedupe from webhooks.deliveries\"")
    assert told.stdout == "orders|17|order-17\n", told.stderr
    (listed,) = live.tenure.webhooks.deliveries("orders", agent.name)
    assert (listed.content_type, listed.size_bytes) == ("application/json", len(b'{"order":17}'))
    forked = agent.fork(live.name("copy"))
    assert forked.exec("psql -At -c 'select count(*) from webhooks.deliveries'").stdout == "1\n"
    assert live.tenure.webhooks.list(forked.name) == []
    assert httpx.post(address, content=b"x", timeout=PATIENCE_S).status_code == 200
    assert forked.exec("psql -At -c 'select count(*) from webhooks.deliveries'").stdout == "1\n", "it is the origin's"
    agent.delete()
    assert httpx.post(address, content=b"x", timeout=PATIENCE_S).status_code == 404
    assert not list((live.settings.keys_dir / "webhooks").glob(f"{hook.id}*"))


def test_a_goal_that_is_due_wakes_an_office_that_sleeps(live: Live) -> None:
    agent = live.agent("timed")
    agent.sleep()
    made = live.tenure.schedules.create("once", agent.name, "look", every="1h", playbook=PLAYBOOK)
    firing = live.tenure.schedules.run(made.id)
    run = live.tenure.runs.get(firing.began).wait(timeout_s=PATIENCE_S)
    assert run.state == "succeeded"
    assert agent.exec("cat from-schedule").stdout == "worked\n"
    live.tenure.schedules.delete(made.id)
