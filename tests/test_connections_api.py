"""Connections by API, SDKs and command: the credential goes in, and comes out nowhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fixtures.api import TOKENS, Api, error_of
from fixtures.cli import Cli
from fixtures.elsewhere import listening
from tenure import AsyncTenure, Tenure
from tenure.client.endpoint import Endpoint
from tenure.errors import AlreadyExists, InvalidArgument, NotFound
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.server.listeners import serve_office_api

pytest_plugins = ("fixtures.server", "fixtures.cli_process")

SECRET = "never-seen-again-4711"
URL = "postgres://reader@db.example.org/sales"


async def test_a_connections_whole_life_in_both_sdks(api: Api) -> None:
    endpoint = Endpoint("http://tenure", api.socket, TOKENS.owner)

    def life(tenure: Tenure) -> None:
        made = tenure.connections.create("crm", URL, secret=SECRET)
        assert (made.address, made.auth, made.private) == ("crm.db:5432", "password", False)
        assert made.url == f"{URL.replace('/sales', ':5432/sales')}?sslmode=verify-full"
        with pytest.raises(AlreadyExists):
            tenure.connections.create("crm", URL, secret=SECRET)
        with pytest.raises(InvalidArgument) as refused:
            tenure.connections.create("other", URL.replace("reader@", f"reader:{SECRET}@"))
        assert SECRET not in str(refused.value.to_payload())
        tenure.connections.grant("crm", "analyst")
        assert tenure.connections.get("crm").agents == ["analyst"]
        assert [one.name for one in tenure.connections.list()] == ["crm"]
        with pytest.raises(NotFound, match="nobody"):
            tenure.connections.grant("crm", "nobody")
        tenure.connections.revoke("crm", "analyst")
        assert tenure.connections.get("crm").agents == []
        tenure.connections.delete("crm")
        with pytest.raises(NotFound):
            tenure.connections.get("crm")

    def with_tenure(work: Callable[[Tenure], None]) -> None:
        with Tenure(endpoint=endpoint) as tenure:
            work(tenure)

    await asyncio.to_thread(with_tenure, life)
    async with AsyncTenure(endpoint=endpoint) as tenure:
        await tenure.connections.create("web", "https://api.example.org/v1", secret=SECRET, auth="header:X-Key")
        await tenure.connections.grant("web", "analyst")
        found = await tenure.connections.get("web")
        assert (found.auth, found.address, found.agents) == ("header:X-Key", "web.api:80", ["analyst"])
        await tenure.connections.revoke("web", "analyst")
        assert len(await tenure.connections.list()) == 1
        await tenure.connections.delete("web")


async def test_no_answer_has_the_credential(api: Api) -> None:
    async with api.client() as owner:
        body = {"name": "crm", "url": URL, "secret": SECRET, "private": True}
        answers = [await owner.post("/v1/connections", json=body)]
        assert answers[0].status_code == 201
        answers.append(await owner.post("/v1/connections", json=body))
        answers.append(await owner.post("/v1/connections", json=body | {"name": "UPPER"}))
        answers.append(await owner.post("/v1/connections", json=body | {"name": "two", "secret": SECRET + "\r\n"}))
        answers.append(await owner.post("/v1/connections", json=body | {"name": "two", "secret": [SECRET]}))
        answers.append(await owner.post("/v1/connections", json=body | {"name": "two", "secret": SECRET * 1000}))
        answers += [await owner.get("/v1/connections"), await owner.get("/v1/connections/crm")]
        assert [one.status_code for one in answers[1:]] == [409, 422, 422, 422, 422, 200, 200]
        for one in answers:
            assert SECRET not in one.text
    (kept,) = (api.directory / "kept").iterdir()
    assert kept.read_text() == SECRET


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", ""),
        ("GET", ""),
        ("GET", "/crm"),
        ("POST", "/crm/check"),
        ("DELETE", "/crm"),
        ("PUT", "/crm/grants/analyst"),
        ("DELETE", "/crm/grants/analyst"),
    ],
)
async def test_an_office_may_neither_see_nor_grant_connections(api: Api, method: str, path: str) -> None:
    async with api.client() as owner:
        (await owner.post("/v1/connections", json={"name": "crm", "url": URL, "secret": SECRET})).raise_for_status()
        (await owner.put("/v1/connections/crm/grants/analyst")).raise_for_status()
    door = api.directory / "office.sock"
    listener = await serve_office_api(api.app, Principal(PrincipalKind.OFFICE, "analyst"), door)
    async with api.client(token=None, socket=door) as office:
        body: dict[str, Any] = (
            {"json": {"name": "more", "url": URL, "secret": "x"}} if not path and method == "POST" else {}
        )
        refused = await office.request(method, f"/v1/connections{path}", **body)
    assert refused.status_code == 403
    assert error_of(refused)["code"] == "forbidden"
    await listener.close(grace_s=0.5)


async def test_the_command_makes_checks_grants_and_deletes(cli: Cli, api: Api) -> None:
    made = await cli("connection", "create", "crm", URL, "--password-stdin", stdin=SECRET.encode() + b"\n")
    assert (made.code, made.out.split()[0]) == (0, "crm")
    (kept,) = (api.directory / "kept").iterdir()
    assert kept.read_text() == SECRET
    granted = await cli("connection", "grant", "crm", "analyst")
    assert granted.out == "analyst reaches crm at crm.db:5432.\n"
    shown = await cli("connection", "show", "crm", "--json")
    assert (shown.json["agents"], "secret" in shown.json) == (["analyst"], False)
    listed = await cli("connection", "list")
    assert "crm.db:5432" in listed.out
    assert (await cli("connection", "revoke", "crm", "analyst")).code == 0
    assert (await cli("connection", "delete", "crm")).code == 0
    assert (await cli("connection", "show", "crm")).code == 3
    for done in (made, granted, shown, listed):
        assert SECRET not in done.out + done.err


async def test_the_command_takes_no_password_from_its_line(cli: Cli, api: Api) -> None:
    refused = await cli("connection", "create", "crm", URL.replace("reader@", f"reader:{SECRET}@"))
    assert refused.code == 2
    assert "--password-stdin" in refused.err
    assert SECRET not in refused.err
    assert (await cli("connection", "create", "crm", URL, "--password-stdin")).code == 2
    missing = await cli("connection", "create", "crm", URL)
    assert (missing.code, "--password-stdin" in missing.err) == (2, True)
    assert (await cli("connection", "create", "crm", URL, "--ca", str(api.directory / "none"))).code == 2
    assert not (api.directory / "kept").exists()


async def test_a_check_says_what_to_do_and_fails_with_it(cli: Cli) -> None:
    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(nothing) as port:
        made = await cli("connection", "create", "bus", f"tcp://127.0.0.1:{port}", "--private")
        assert "a credential that it has" in made.out
        assert (await cli("connection", "check", "bus")).code == 0
        await cli("connection", "create", "public", f"tcp://127.0.0.1:{port}")
        refused = await cli("connection", "check", "public")
        assert (refused.code, "this machine itself" in refused.out, "--private" in refused.out) == (1, True, True)
    gone = await cli("connection", "check", "bus", "--json")
    assert (gone.code, gone.json["reached"]) == (1, False)
    assert json.dumps(gone.json)


def test_certificates_are_read_from_a_file(tmp_path: Path) -> None:
    from tenure.cli.commands.connections import _certificates

    (tmp_path / "ca.pem").write_text("text")
    assert _certificates(tmp_path / "ca.pem") == "text"
    assert _certificates(None) is None
