"""A shared bucket is reached by whoever was granted it, as far as the grant goes and no further, and lies where it was made."""

from __future__ import annotations

import xml.etree.ElementTree as Tree
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from fixtures.s3_server import at_the_door
from fixtures.s3_world import World
from tenure.data.s3.app import s3_app
from tenure.data.s3.shared import SharedBuckets
from tenure.data.s3.shared_store import CREATING, DELETING, SharedBucketStore
from tenure.database.connect import ControlDatabase
from tenure.errors import AlreadyExists, Conflict, InvalidArgument, InvalidName, NotFound
from tenure.identity.authorize import Principal, PrincipalKind
from tenure.identity.grants import GrantStore
from tenure.identity.tokens import OWNER
from tenure.offices.volumes.directory import DirectoryDriver
from tenure.settings import Settings
from tenure.testing.object_conformance import PLAIN, stream

pytest_plugins = ("fixtures.database",)

NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@dataclass
class Offices:
    """HTTP clients at the doors of two offices, and one of the owner's."""

    world: World
    analyst: httpx.AsyncClient
    writer: httpx.AsyncClient
    owner: httpx.AsyncClient


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[Offices]:
    world = World(tmp_path, ("analyst", "writer"))

    def client(principal: Principal) -> httpx.AsyncClient:
        app = s3_app(world.buckets, at_the_door(principal))
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s3:9000")

    offices = [client(Principal(PrincipalKind.OFFICE, name)) for name in ("analyst", "writer")]
    async with offices[0] as analyst, offices[1] as writer, client(OWNER) as owner:
        yield Offices(world, analyst, writer, owner)


async def status(client: httpx.AsyncClient, method: str, path: str, **more: str) -> int:
    content = b"x" if method == "PUT" and path.count("/") > 1 else None
    return (await client.request(method, path, content=content, headers=more)).status_code


def texts(answer: httpx.Response, name: str) -> list[str]:
    return [one.text or "" for one in Tree.fromstring(answer.content).iter(f"{NAMESPACE}{name}")]


async def test_only_a_grant_opens_a_shared_bucket_and_only_as_far_as_it_says(at: Offices) -> None:
    await at.world.shared.create("sales")
    assert await status(at.owner, "PUT", "/sales/a") == 200
    everything = (("GET", "/sales/a"), ("GET", "/sales"), ("PUT", "/sales/b"), ("DELETE", "/sales/a"))
    assert [await status(at.analyst, *one) for one in everything] == [403] * 4
    await at.world.shared.grant("sales", "analyst", "read", by=OWNER)
    assert [await status(at.analyst, *one) for one in everything] == [200, 200, 403, 403]
    assert [await status(at.writer, *one) for one in everything] == [403] * 4
    await at.world.shared.grant("sales", "analyst", "write", by=OWNER)
    assert [await status(at.analyst, *one) for one in everything] == [200, 200, 200, 204]
    for method, path in (("PUT", "/sales?versioning"), ("DELETE", "/sales"), ("PUT", "/sales?cors")):
        assert await status(at.analyst, method, path) == 403


async def test_a_grant_of_a_prefix_tells_nothing_of_the_rest(at: Offices) -> None:
    await at.world.shared.create("sales")
    for key in ("team/a/1", "team/a/2", "team/b/1", "other"):
        assert await status(at.owner, "PUT", f"/sales/{key}") == 200
    await at.world.shared.grant("sales", "analyst", "write", by=OWNER, prefix="team/a/")
    assert texts(await at.analyst.get("/sales"), "Key") == ["team/a/1", "team/a/2"]
    assert texts(await at.analyst.get("/sales?delimiter=/"), "Prefix")[1:] == ["team/"]
    assert texts(await at.analyst.get("/sales?prefix=team/b/"), "Key") == []
    assert texts(await at.analyst.get("/sales?versions"), "Key") == ["team/a/1", "team/a/2"]
    assert [
        await status(at.analyst, "GET", f"/sales/{key}") for key in ("team/a/1", "team/b/1", "team/a/%2E%2E/b/1")
    ] == [
        200,
        403,
        404,  # a key like any other: nothing is normalised
    ]
    assert await status(at.analyst, "PUT", "/sales/team/b/2") == 403
    assert await status(at.analyst, "PUT", "/sales/team/a/3", **{"x-amz-copy-source": "/sales/team/b/1"}) == 403
    assert await status(at.analyst, "PUT", "/sales/team/a/3", **{"x-amz-copy-source": "/sales/team/a/1"}) == 200
    body = "<Delete><Object><Key>team/b/1</Key></Object><Object><Key>team/a/3</Key></Object></Delete>"
    answer = await at.analyst.post("/sales?delete", content=body)
    assert texts(answer, "Code") == ["AccessDenied"]
    assert await status(at.owner, "GET", "/sales/team/b/1") == 200


async def test_offices_have_names_of_buckets_to_themselves_and_never_others(at: Offices) -> None:
    assert await status(at.analyst, "PUT", "/mine/x") == 200
    assert await status(at.writer, "GET", "/mine/x") == 404
    assert await status(at.writer, "GET", "/analyst.mine/x") == 404
    assert await status(at.owner, "GET", "/analyst.mine/x") == 200
    assert await status(at.owner, "GET", "/mine/x") == 404
    await at.world.shared.create("mine")
    with pytest.raises(Conflict, match="of its own"):
        await at.world.shared.grant("mine", "analyst", "read", by=OWNER)
    assert await status(at.writer, "PUT", "/mine") == 409


# --- over the control database -----------------------------------------------------------------------------------------
@pytest.fixture
def shared(control_database: ControlDatabase, tmp_path: Path) -> SharedBuckets:
    return buckets_of(control_database, tmp_path)


def buckets_of(database: ControlDatabase, home: Path) -> SharedBuckets:
    async def need(agent: str) -> None:
        if agent == "nobody":
            raise NotFound("There is no such agent.")

    async def has_own(agent: str, bucket: str) -> bool:
        return False

    settings = Settings(home=home)
    settings.pool_dir.mkdir(exist_ok=True)
    grants = GrantStore(database)
    return SharedBuckets(SharedBucketStore(database), grants, settings, DirectoryDriver(), need, has_own)


async def test_buckets_are_made_listed_limited_and_deleted(shared: SharedBuckets, tmp_path: Path) -> None:
    made = await shared.create("sales", 2.0)
    assert (made.name, made.quota_bytes, made.objects, made.backend) == ("sales", 2 * 1024**3, 0, "volume")
    with pytest.raises(AlreadyExists):
        await shared.create("sales")
    for name in ("", "..", "A", "a.b"):
        with pytest.raises(InvalidName):
            await shared.create(name)
    with pytest.raises(InvalidArgument):
        await shared.create("x", backend="ftp://somewhere")
    with pytest.raises(InvalidArgument):
        await shared.create("x", 0.001)
    assert (await shared.limit("sales", 3.0)).quota_bytes == 3 * 1024**3
    await shared.grant("sales", "analyst", "read", by=OWNER)
    assert [one.name for one in await shared.list(Principal(PrincipalKind.OFFICE, "analyst"))] == ["sales"]
    assert list(await shared.list(Principal(PrincipalKind.OFFICE, "writer"))) == []
    with pytest.raises(NotFound):
        await shared.grant("sales", "nobody", "read", by=OWNER)
    with pytest.raises(InvalidArgument):
        await shared.grant("sales", "analyst", "read", by=OWNER, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await shared.delete("sales")
    assert not shared.volume_of("sales").exists()
    for attempt in (shared.get("sales"), shared.delete("sales"), shared.grants("sales")):
        with pytest.raises(NotFound):
            await attempt
    assert list(await shared.list()) == []
    await shared.create("sales")
    assert list(await shared.grants("sales")) == []  # whoever had one to the old has none to the new


async def test_a_server_that_died_in_between_leaves_nothing(
    shared: SharedBuckets, control_database: ControlDatabase
) -> None:
    store = SharedBucketStore(control_database)
    await shared.create("kept")
    await shared.create("going")
    await store.set_stage("going", DELETING)
    await store.add("coming", 1024**3, "")
    assert [one.stage for one in await store.all(unfinished=True)] == [CREATING, DELETING, "there"]
    await DirectoryDriver().create_empty(shared.volume_of("coming"))
    await shared.adopt_all()
    assert [one.name for one in await store.all(unfinished=True)] == ["kept"]
    assert [path.name for path in shared.volume_of("x").parent.iterdir()] == ["kept"]
    await shared.create("coming")


async def test_a_bucket_elsewhere_stays_when_it_is_let_go(shared: SharedBuckets, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "report.txt").write_bytes(b"there before")
    await shared.create("far", backend=f"file://{tmp_path}/far")
    backend = await shared.open("far")
    assert b"".join([chunk async for chunk in (await backend.open("report.txt")).read()]) == b"there before"
    upload_id = await backend.uploads.begin("big", PLAIN)
    part = await backend.uploads.put("big", upload_id, 1, stream(b"in parts"))
    await backend.uploads.complete("big", upload_id, [part])
    assert (tmp_path / "far" / "big").read_bytes() == b"in parts"
    await shared.delete("far")
    assert list(shared.volume_of("far").parent.iterdir()) == []
    assert (tmp_path / "far" / "report.txt").exists()
