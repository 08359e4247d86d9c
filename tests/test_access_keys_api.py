"""Access keys over the API: the owner makes and revokes them, an office is lent one, and no office makes any."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from fixtures.api import Api, error_of
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.server.listeners import serve_office_api

pytest_plugins = ("fixtures.server",)

ANALYST = Principal(PrincipalKind.OFFICE, "analyst")


async def test_a_key_is_made_listed_and_revoked_and_its_secret_told_once(api: Api) -> None:
    async with api.client() as owner:
        wanted = {"agent": "analyst", "buckets": {"reports": "read"}, "expires_s": 60, "comment": "a tool"}
        made = (await owner.post("/v1/access-keys", json=wanted)).raise_for_status().json()
        assert (made["principal"], made["buckets"], len(made["id"])) == ("office:analyst", {"reports": "read"}, 20)
        assert len(made["secret"]) == 40
        mine = (await owner.post("/v1/access-keys", json={})).raise_for_status().json()
        assert mine["principal"] == "owner"
        listed = await owner.get("/v1/access-keys")
        assert [one["id"] for one in listed.json()["keys"]] == [made["id"], mine["id"]]
        assert made["secret"] not in listed.text
        confined = (await owner.get("/v1/access-keys", params={"agent": "analyst"})).json()["keys"]
        assert [one["id"] for one in confined] == [made["id"]]
        assert (await owner.delete(f"/v1/access-keys/{made['id']}")).status_code == 204
        gone = await owner.delete(f"/v1/access-keys/{made['id']}")
        assert (gone.status_code, error_of(gone)["code"]) == (404, "not_found")


async def test_a_wrong_wish_is_told_so(api: Api) -> None:
    async with api.client() as owner:
        for wanted, code in (
            ({"agent": "nobody"}, 404),
            ({"agent": "../x"}, 400),
            ({"buckets": {"reports": "admin"}}, 400),
            ({"buckets": {"Bad Name": "read"}}, 400),
            ({"expires_s": 0}, 400),
            ({"expires_s": -1}, 400),
        ):
            answer = await owner.post("/v1/access-keys", json=wanted)
            assert answer.status_code in (code, 422), (wanted, answer.text)
        for wanted in (
            {"bucket": "b", "name": "x", "expires_s": 604801},
            {"bucket": "b", "name": "x", "method": "DELETE"},
        ):
            assert (await owner.post("/v1/agents/analyst/addresses", json=wanted)).status_code in (400, 422)


async def test_an_office_is_lent_a_key_for_an_hour_and_makes_none(api: Api) -> None:
    socket = api.directory / "door.sock"
    listener = await serve_office_api(api.app, ANALYST, socket)
    try:
        async with api.client(token=None, socket=socket) as office:
            answer = await office.get("/v1/s3-credentials", headers={"authorization": "door"})
            lent = answer.raise_for_status().json()
            assert answer.headers["cache-control"] == "no-store"
            until = datetime.strptime(lent["Expiration"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
            assert timedelta(minutes=58) < until - datetime.now(UTC) <= timedelta(hours=1)
            assert ".analyst." in lent["Token"]
            lines = (await office.get("/v1/s3-credentials", params={"format": "env"})).text.splitlines()
            assert [line.partition("=")[0] for line in lines] == [
                "export AWS_ACCESS_KEY_ID",
                "export AWS_SECRET_ACCESS_KEY",
                "export AWS_SESSION_TOKEN",
            ]
            for method, path, body in (
                ("POST", "/v1/access-keys", {"agent": "analyst"}),
                ("POST", "/v1/access-keys", {}),
                ("POST", "/v1/agents/analyst/addresses", {"bucket": "b", "name": "x"}),
                ("DELETE", "/v1/access-keys/TNKX", None),
                ("DELETE", "/v1/agents/analyst/lent-keys", None),
            ):
                refused = await office.request(method, path, json=body)
                assert (refused.status_code, error_of(refused)["code"]) == (403, "forbidden"), path
    finally:
        await listener.close()


async def test_the_owner_is_lent_no_key(api: Api) -> None:
    async with api.client() as owner:
        answer = await owner.get("/v1/s3-credentials")
        assert (answer.status_code, error_of(answer)["code"]) == (422, "invalid_argument")


async def test_an_address_is_of_the_server_for_clients_outside(api: Api) -> None:
    async with api.client() as owner:
        wanted = {"bucket": "reports", "name": "a b/é+=&.txt", "method": "PUT", "expires_s": 60}
        made = (await owner.post("/v1/agents/analyst/addresses", json=wanted)).raise_for_status().json()
    assert made["url"].startswith(
        "http://127.0.0.1:9000/reports/a%20b/%C3%A9%2B%3D%26.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&"
    )
    assert made["method"] == "PUT"
