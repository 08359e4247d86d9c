"""Webhooks over the API, with both SDKs and on the command line. What comes is received elsewhere: `test_webhooks.py`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fixtures.api import TOKENS, Api, error_of
from fixtures.cli import Cli
from tenure import AsyncTenure, Tenure, errors
from tenure.client.endpoint import Endpoint

pytest_plugins = ("fixtures.server", "fixtures.cli_process")

BODY = {"name": "orders", "agent": "analyst"}


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"name": "Bad_Name"}, 422, "invalid_name"),
        ({"agent": "nobody"}, 404, "not_found"),
        ({"signature": "svix"}, 422, "invalid_argument"),
        ({"signature": "\0"}, 422, "invalid_argument"),
        ({"secret": "short"}, 422, "invalid_argument"),
        ({"secret": "\ud800" * 20}, 422, "invalid_argument"),
        ({"signature": "none", "secret": "x" * 20}, 422, "invalid_argument"),
        ({"keep_s": 1}, 422, "invalid_argument"),
        ({"colour": "red"}, 422, "invalid_argument"),
    ],
)
async def test_webhooks_that_make_no_sense_are_refused(
    api: Api, change: dict[str, Any], status: int, code: str
) -> None:
    async with api.client() as owner:
        answer = await owner.post(
            "/v1/webhooks", content=json.dumps(BODY | change), headers={"content-type": "application/json"}
        )
    assert (answer.status_code, error_of(answer)["code"]) == (status, code), answer.text


async def test_a_secret_is_shown_once_and_never_again(api: Api) -> None:
    async with api.client() as owner:
        made = (await owner.post("/v1/webhooks", json=BODY)).json()
        assert made["secret"].startswith("whsec_")
        for path in ("/v1/webhooks", "/v1/webhooks/orders"):
            assert made["secret"] not in (await owner.get(path)).text
        refused = await owner.post(
            "/v1/webhooks", json=BODY | {"name": "b", "signature": "x", "secret": "my own secret"}
        )
        assert "my own secret" not in refused.text


async def test_both_sdks_do_a_webhooks_whole_life(api: Api) -> None:
    endpoint = Endpoint("http://tenure", api.socket, TOKENS.owner)

    def life() -> str:
        with Tenure(endpoint=endpoint) as client:
            made = client.webhooks.create("orders", "analyst", signature="github", keep="7d")
            assert (made.keep_s, made.signature, made.received) == (7 * 86400, "github", 0)
            assert made.path.startswith("/hooks/")
            assert client.webhooks.test("orders").outcome == "stored"
            assert client.webhooks.deliveries("orders", "analyst") == []
            with pytest.raises(errors.NotFound):
                client.webhooks.delivery("orders", "dlv_1")
            rotated = client.webhooks.rotate("orders", address=True)
            assert rotated.path != made.path
            assert rotated.secret not in (None, made.secret)
            assert client.webhooks.rotate("orders", secret="one of the sender").secret == "one of the sender"
            return made.id

    made = await asyncio.to_thread(life)
    async with AsyncTenure(endpoint=endpoint) as client:
        assert [one.id for one in await client.webhooks.list("analyst")] == [made]
        assert (await client.webhooks.test(made)).outcome == "stored"
        assert (await client.webhooks.get("orders")).secret is None
        await client.webhooks.delete("orders", "analyst")
        assert await client.webhooks.list() == []


async def test_the_command_line_does_a_webhooks_whole_life(cli: Cli) -> None:
    made = await cli("webhook", "create", "orders", "analyst")
    assert made.code == 0, made.stderr
    assert b"whsec_" in made.stdout
    assert b"/hooks/" in made.stdout
    given = await cli(
        "webhook", "create", "given", "analyst", "--signature", "stripe", "--secret-stdin", stdin=b"whsec_own\n"
    )
    assert (given.code, b"whsec_own" in given.stdout) == (0, False)
    assert "orders" in (await cli("webhook", "list")).stdout.decode()
    assert b"was stored" in (await cli("webhook", "test", "orders")).stdout
    assert (await cli("webhook", "deliveries", "orders", "--json")).stdout.strip().endswith(b"}")
    shown = json.loads((await cli("webhook", "show", "orders", "--json")).stdout)
    assert (shown["signature"], shown["secret"]) == ("standard", None)
    assert b"whsec_" in (await cli("webhook", "rotate", "orders")).stdout
    assert (await cli("webhook", "delete", "orders")).code == 0
    assert (await cli("webhook", "show", "orders")).code == 3
    assert (await cli("webhook", "create", "x", "analyst", "--signature", "x")).code == 2
