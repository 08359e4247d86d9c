"""From inside a real office: psql and curl reach what was granted by its name, without a credential, until it is taken away."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psycopg

from fixtures.elsewhere import Api, Authority, listening, postgres_front
from fixtures.live import Live

PASSWORD = "live-s3cret-of-nobody"
TOKEN = "live_0123456789abcdef"


async def test_psql_and_curl_reach_what_was_granted_and_nothing_once_it_is_taken_away(
    live: Live, postgres_dsn: str, tmp_path: Path
) -> None:
    with psycopg.connect(postgres_dsn, autocommit=True) as owner:
        hba = Path(owner.execute("show hba_file").fetchone()[0])  # type: ignore[index]
        hba.write_text("local all live_reader scram-sha-256\n" + hba.read_text())
        owner.execute(f"create role live_reader login password '{PASSWORD}'")  # type: ignore[arg-type]
        owner.execute("create database live_crm")
        owner.execute("select pg_reload_conf()")
        socket = Path(owner.info.host) / ".s.PGSQL.5432"
    authority, api = Authority(tmp_path), Api()
    (tmp_path / "ca.pem").write_text(authority.pem)
    context = authority.context("127.0.0.1")
    async with postgres_front(socket, context) as sql_port, listening(api.talk, context) as web_port:
        await asyncio.to_thread(_use, live, authority.pem, sql_port, web_port)
    assert f"authorization: bearer {TOKEN}" in api.head
    assert [head.split(b" ")[1] for head, _ in api.asked] == [b"/", b"/v1/things"]


def _use(live: Live, ca: str, sql_port: int, web_port: int) -> None:
    tenure, agent = live.tenure, live.agent("caller")
    crm, web = live.name("crm"), live.name("web")
    url = f"postgres://live_reader@127.0.0.1:{sql_port}/live_crm"
    tenure.connections.create(crm, url, secret=PASSWORD, private=True, ca=ca)
    tenure.connections.create(web, f"https://127.0.0.1:{web_port}", secret=TOKEN, private=True, ca=ca)
    for name in (crm, web):
        assert tenure.connections.check(name).credential_works
    psql = f"psql -h {crm}.db -Atc 'select current_user, current_database()'"
    curl = f"curl -sS http://{web}.api/v1/things"
    assert agent.exec(psql).exit_code != 0
    assert agent.exec(curl).exit_code != 0
    for name in (crm, web):
        tenure.connections.grant(name, agent.name)
    assert agent.exec(psql).stdout == "live_reader|live_crm\n"
    assert agent.exec(curl).stdout == "ok"
    agent.sleep()
    assert agent.exec(psql).stdout == "live_reader|live_crm\n", "after a night's sleep, too"
    searched = agent.exec(f"env; sudo grep -rlsE '{PASSWORD}|{TOKEN}' /etc /home /root /tmp /var /run")
    assert PASSWORD not in searched.stdout
    assert [line for line in searched.stdout.splitlines() if line.startswith("/")] == []
    held = agent.exec(f"psql -h {crm}.db -Atc 'select pg_sleep(0)' && getent hosts {web}.api {crm}.db | wc -l")
    assert held.stdout.split() == ["2"]
    for name in (crm, web):
        tenure.connections.revoke(name, agent.name)
    assert agent.exec(psql).exit_code != 0
    assert agent.exec(curl).exit_code != 0
    log = (live.settings.logs_dir / "offices" / f"{agent.name}.log").read_text()
    assert f"connection: {crm}: connected to 127.0.0.1:{sql_port} as live_reader, database live_crm" in log
    assert f"connection: {web}: GET /v1/things: 200" in log
    assert PASSWORD not in log
    assert TOKEN not in log
    server_log = live.settings.logs_dir.rglob("*.log")
    assert not [path for path in server_log if PASSWORD in path.read_text(errors="replace")]
    tenure.connections.delete(crm)
    tenure.connections.delete(web)
    agent.delete()
