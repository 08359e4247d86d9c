"""An access key stands for one principal, as long as it is not revoked, expired, or its agent's; and for nobody by accident."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from s3_requests import Sent, signed
from tenure.data.s3.access_keys import AccessKeys
from tenure.data.s3.authentication import Authenticator
from tenure.data.s3.errors import S3Error
from tenure.data.s3.keys import AccessKey, KeyStore, ensure_master_key
from tenure.data.s3.request import Authenticated
from tenure.data.s3.sessions import Session, Sessions, Use
from tenure.database.connect import ControlDatabase
from tenure.errors import InvalidArgument, InvalidName, NotFound, SetupError
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.identity.tokens import OWNER
from tenure.offices.models import Limits
from tenure.offices.store import OfficeStore

pytest_plugins = ("fixtures.database",)

ANALYST, WRITER = (Principal(PrincipalKind.OFFICE, name) for name in ("analyst", "writer"))
URL = "http://s3:9000/reports/2014.md"
MASTER = bytes(range(32))


class Clock:
    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class Place:
    """Two agents, and keys for them."""

    database: ControlDatabase
    offices: OfficeStore
    store: KeyStore
    keys: AccessKeys
    clock: Clock

    def door(self, principal: Principal) -> Authenticator:
        return self.keys.authenticator(principal)

    @property
    def outside(self) -> Authenticator:
        return self.keys.authenticator()


@pytest.fixture
async def place(control_database: ControlDatabase) -> Place:
    offices, clock = OfficeStore(control_database), Clock()
    for name in ("analyst", "writer"):
        await offices.add(name, "image", Limits(), ())

    async def number_of(agent: str) -> int:
        return (await offices.get(agent)).number

    store = KeyStore(control_database, MASTER)
    return Place(
        control_database, offices, store, AccessKeys(store, MASTER, number_of, "http://localhost:9000", clock), clock
    )


async def came(authenticator: Authenticator, sent: Sent) -> Authenticated:
    return await authenticator(sent.seen())


async def refusal(authenticator: Authenticator, sent: Sent) -> str:
    with pytest.raises(S3Error) as caught:
        await authenticator(sent.seen())
    return caught.value.code


async def key_for(place: Place, agent: str | None, **more: object) -> tuple[AccessKey, Callable[..., Sent]]:
    """A key, and what signs with it."""
    key, secret = await place.keys.create(agent, by=OWNER, **more)  # type: ignore[arg-type]

    def sign(method: str = "GET", url: str = URL, **options: object) -> Sent:
        return signed(method, url, key_id=key.id, secret=secret, **options)  # type: ignore[arg-type]

    return key, sign


async def lent(place: Place, agent: str) -> Callable[..., Sent]:
    keys = await place.keys.lend(agent)

    def sign(method: str = "GET", url: str = URL, **options: object) -> Sent:
        given = {"key_id": keys.access_key_id, "secret": keys.secret_access_key, "token": keys.token, **options}
        return signed(method, url, **given)  # type: ignore[arg-type]

    return sign


# --- long-lived keys ---------------------------------------------------------------------------------
async def test_a_key_stands_for_its_principal(place: Place) -> None:
    for agent, principal in (("analyst", ANALYST), (None, OWNER)):
        key, sign = await key_for(place, agent)
        assert key.principal == principal
        assert (await came(place.outside, sign())).principal == principal
        assert (await came(place.outside, sign(expires_s=60))).principal == principal
    assert [one.last_used_at is not None for one in await place.keys.list()] == [True, True]
    assert [one.principal for one in await place.keys.list("analyst")] == [ANALYST]


async def test_a_revoked_key_is_nobodys_at_once_and_in_the_middle_of_a_request(place: Place) -> None:
    key, sign = await key_for(place, "analyst")
    sent = sign("PUT", body=b"x" * 200)
    begun = await place.outside(sent.seen(100))
    assert await anext(begun.body)  # type: ignore[arg-type]
    await place.keys.revoke(key.id)
    with pytest.raises(S3Error, match="revoked"):
        await anext(begun.body)  # type: ignore[arg-type]
    assert await refusal(place.outside, sent) == "InvalidAccessKeyId"
    with pytest.raises(NotFound):
        await place.keys.revoke(key.id)


async def test_a_key_ends_with_its_time_also_in_the_middle_of_a_request(place: Place) -> None:
    _, sign = await key_for(place, "analyst", expires_s=600)
    begun = await place.outside(sign("PUT", body=b"x" * 200).seen(100))
    assert await anext(begun.body)  # type: ignore[arg-type]
    place.clock.ahead = timedelta(seconds=601)
    with pytest.raises(S3Error):
        await anext(begun.body)  # type: ignore[arg-type]
    await place.database.execute("UPDATE s3_keys SET expires_at = now() - interval '1 second'")
    place.clock.ahead = timedelta()
    assert await refusal(place.outside, sign()) == "InvalidAccessKeyId"


async def test_a_key_with_the_secret_of_another_is_refused(place: Place) -> None:
    mine, _ = await place.keys.create("analyst", by=OWNER)
    _, theirs = await place.keys.create("writer", by=OWNER)
    assert await refusal(place.outside, signed("GET", URL, key_id=mine.id, secret=theirs)) == "SignatureDoesNotMatch"
    assert (
        await refusal(place.outside, signed("GET", URL, key_id="TNKNOSUCHKEY", secret=theirs)) == "InvalidAccessKeyId"
    )


async def test_a_key_ends_with_its_agent_and_not_with_the_agents_name(place: Place) -> None:
    _, sign = await key_for(place, "analyst")
    borrowed = await lent(place, "analyst")
    await came(place.door(ANALYST), borrowed())
    await place.database.execute("DELETE FROM agents WHERE name = 'analyst'")
    await place.offices.add("analyst", "image", Limits(), ())
    assert await refusal(place.outside, sign()) == "InvalidAccessKeyId"
    assert await refusal(place.door(ANALYST), borrowed()) == "ExpiredToken"
    again = await lent(place, "analyst")
    assert (await came(place.door(ANALYST), again())).principal == ANALYST
    assert await refusal(place.door(ANALYST), borrowed()) == "ExpiredToken"
    with pytest.raises(NotFound):
        await place.keys.create("nobody", by=OWNER)


async def test_a_key_for_some_buckets_allows_no_more(place: Place) -> None:
    _, sign = await key_for(place, "analyst", buckets={"reports": "read", "inbox": "write"})
    allows = (await came(place.outside, sign())).allows
    asked = [("object:read", "reports"), ("object:list", "reports"), ("object:write", "inbox"), ("object:list", "")]
    assert [allows(*one) for one in asked] == [True] * 4
    asked = [("object:write", "reports"), ("object:read", "others"), ("object:delete", "reports"), ("object:write", "")]
    assert [allows(*one) for one in asked] == [False] * 4
    _, sign = await key_for(place, "analyst")
    assert (await came(place.outside, sign())).allows("object:delete", "anything")
    for buckets, error in (({"reports": "admin"}, InvalidArgument), ({"../x": "read"}, InvalidName)):
        with pytest.raises(error):
            await place.keys.create("analyst", by=OWNER, buckets=buckets)


async def test_the_database_alone_has_no_secret(place: Place) -> None:
    key, secret = await place.keys.create("analyst", by=OWNER)
    row = await place.database.fetch_one("SELECT * FROM s3_keys")
    assert row is not None
    assert secret.encode() not in bytes(row["sealed"])
    assert secret not in repr(row)
    found = await place.store.find(key.id)
    assert found is not None
    assert found[1] == secret
    assert await KeyStore(place.database, bytes(32)).find(key.id) is None


@pytest.mark.parametrize(
    "change", ["principal = 'owner'", "agent = NULL", "id = 'TNKOTHER'", "sealed = set_byte(sealed, 20, 0)"]
)
async def test_a_row_that_was_changed_does_not_open(place: Place, change: str) -> None:
    key, secret = await place.keys.create("analyst", by=OWNER)
    await place.database.execute(f"UPDATE s3_keys SET {change}")
    sent = signed("GET", URL, key_id="TNKOTHER" if "OTHER" in change else key.id, secret=secret)
    assert await refusal(place.outside, sent) == "InvalidAccessKeyId"


def test_the_master_key_is_made_once_and_nobody_else_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "s3.key"
    made = ensure_master_key(path)
    assert len(made) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert ensure_master_key(path) == made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["s3.key"]
    path.write_bytes(b"short")
    with pytest.raises(SetupError):
        ensure_master_key(path)


# --- the door ------------------------------------------------------------------------------------------
async def test_at_a_door_an_unsigned_request_is_the_offices_and_outside_nobodys(place: Place) -> None:
    bare = Sent("GET", b"/reports", b"", ((b"host", b"s3:9000"),))
    assert (await came(place.door(ANALYST), bare)).principal == ANALYST
    assert (await came(place.outside, bare)).principal is None


async def test_at_a_door_only_keys_of_that_office_sign(place: Place) -> None:
    _, mine = await key_for(place, "analyst")
    _, theirs = await key_for(place, "writer")
    _, owners = await key_for(place, None)
    assert (await came(place.door(ANALYST), mine())).principal == ANALYST
    for other in (theirs, owners, await lent(place, "writer")):
        assert await refusal(place.door(ANALYST), other()) == "AccessDenied"
        assert await refusal(place.door(ANALYST), other(expires_s=60)) == "AccessDenied"
    wrong = signed("GET", URL, key_id=(await place.keys.create("analyst", by=OWNER))[0].id, secret="guessed")
    assert await refusal(place.door(ANALYST), wrong) == "SignatureDoesNotMatch"


async def test_what_an_office_is_lent_works_at_its_door_and_nowhere_else(place: Place) -> None:
    borrowed = await lent(place, "analyst")
    assert (await came(place.door(ANALYST), borrowed("PUT", body=b"content"))).principal == ANALYST
    assert (await came(place.door(ANALYST), borrowed(expires_s=60))).principal == ANALYST
    assert await refusal(place.outside, borrowed()) == "AccessDenied"
    assert await refusal(place.door(WRITER), borrowed()) == "AccessDenied"  # as in a fork that found it in a file


async def test_what_is_lent_ends_after_an_hour_and_when_it_is_revoked(place: Place) -> None:
    borrowed = await lent(place, "analyst")
    begun = await place.door(ANALYST)(borrowed("PUT", body=b"x" * 200).seen(100))
    assert await anext(begun.body)  # type: ignore[arg-type]
    await place.keys.revoke_lent("analyst")
    with pytest.raises(S3Error, match="revoked"):
        await anext(begun.body)  # type: ignore[arg-type]
    assert await refusal(place.door(ANALYST), borrowed()) == "ExpiredToken"
    borrowed = await lent(place, "analyst")
    assert (await came(place.door(ANALYST), borrowed())).principal == ANALYST
    place.clock.ahead = timedelta(minutes=61)
    sent = borrowed()
    with pytest.raises(S3Error, match="ExpiredToken"):
        Sessions(MASTER).read(sent.get("x-amz-security-token"), key_id_of(sent), place.clock())


def key_id_of(sent: Sent) -> str:
    return sent.get("authorization").partition("Credential=")[2].partition("/")[0]


async def test_a_token_is_one_that_we_made_for_this_key(place: Place) -> None:
    mine, theirs = await place.keys.lend("analyst"), await place.keys.lend("writer")
    for key_id, secret, token, code in (
        (mine.access_key_id, mine.secret_access_key, theirs.token, "InvalidToken"),
        (theirs.access_key_id, mine.secret_access_key, mine.token, "InvalidToken"),
        (mine.access_key_id, theirs.secret_access_key, mine.token, "SignatureDoesNotMatch"),
        (mine.access_key_id, mine.secret_access_key, mine.token.replace("analyst", "writer"), "InvalidToken"),
        (mine.access_key_id, mine.secret_access_key, mine.token.replace("office", "address"), "InvalidToken"),
        (mine.access_key_id, mine.secret_access_key, mine.token[:-1], "InvalidToken"),
        (mine.access_key_id, mine.secret_access_key, "nonsense", "InvalidToken"),
    ):
        sent = signed("GET", URL, key_id=key_id, secret=secret, token=token)
        assert await refusal(place.door(ANALYST), sent) == code
    bare = signed("GET", URL, key_id=mine.access_key_id, secret=mine.secret_access_key)
    assert await refusal(place.door(ANALYST), bare) == "InvalidAccessKeyId"


def test_no_two_sessions_have_keys_in_common() -> None:
    sessions, until = Sessions(MASTER), datetime(2026, 1, 1, tzinfo=UTC)
    one = Session(Use.OFFICE, 1, "analyst", 1, until, secrets.token_hex(8))
    others = [
        replace(one, use=Use.ADDRESS),
        replace(one, agent=2),
        replace(one, name="writer"),
        replace(one, generation=2),
        replace(one, expires_at=until + timedelta(seconds=1)),
        replace(one, nonce=secrets.token_hex(8)),
    ]
    found = [sessions.keys_of(each) for each in (one, *others)] + [Sessions(bytes(32)).keys_of(one)]
    assert len({keys.secret for keys in found}) == len({keys.key_id for keys in found}) == len(found)
    assert sessions.keys_of(one) == Sessions(MASTER).keys_of(one)


# --- addresses -----------------------------------------------------------------------------------------
def address(url: str, method: str = "GET") -> Sent:
    path, _, query = url.removeprefix("http://localhost:9000").partition("?")
    return Sent(method, path.encode(), query.encode(), ((b"host", b"localhost:9000"),))


async def test_an_address_does_one_thing_until_its_time(place: Place) -> None:
    made = await place.keys.presign("analyst", "reports", "a b/é+=&.txt", method="GET", expires_s=60)
    sent = address(made.url)
    assert (await came(place.outside, sent)).principal == ANALYST
    assert await refusal(place.outside, replace(sent, method="PUT")) == "SignatureDoesNotMatch"
    assert await refusal(place.outside, replace(sent, path=b"/reports/other")) == "SignatureDoesNotMatch"
    assert await refusal(place.door(WRITER), sent) == "AccessDenied"
    place.clock.ahead = timedelta(seconds=61)
    assert await refusal(place.outside, sent) in ("AccessDenied", "ExpiredToken")
    for expires_s in (0, 604801):
        with pytest.raises(InvalidArgument):
            await place.keys.presign("analyst", "reports", "x", method="GET", expires_s=expires_s)
    with pytest.raises(InvalidArgument):
        await place.keys.presign("analyst", "reports", "x", method="DELETE", expires_s=60)


async def test_an_address_ends_with_what_the_agent_was_lent(place: Place) -> None:
    made = await place.keys.presign("analyst", "reports", "x", method="PUT", expires_s=60)
    assert (await came(place.outside, address(made.url, "PUT"))).principal == ANALYST
    await place.keys.revoke_lent("analyst")
    assert await refusal(place.outside, address(made.url, "PUT")) == "ExpiredToken"


async def test_the_key_of_an_address_signs_addresses_only(place: Place) -> None:
    session = Session(
        Use.ADDRESS,
        (await place.offices.get("analyst")).number,
        "analyst",
        1,
        place.clock() + timedelta(hours=1),
        "0" * 16,
    )
    await place.keys.lend("analyst")
    keys = Sessions(MASTER).keys_of(session)
    sign = {"key_id": keys.key_id, "secret": keys.secret, "token": keys.token}
    assert (await came(place.outside, signed("GET", URL, **sign, expires_s=60))).principal == ANALYST
    assert await refusal(place.outside, signed("GET", URL, **sign)) == "InvalidToken"


async def test_many_requests_at_once_are_each_their_own(place: Place) -> None:
    signers = [await key_for(place, agent) for agent in ("analyst", "writer", None) * 5]
    came_as = await asyncio.gather(*(came(place.outside, sign()) for _, sign in signers))
    assert [one.principal for one in came_as] == [key.principal for key, _ in signers]
