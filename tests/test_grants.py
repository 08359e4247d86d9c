"""A grant lets one principal do what its level says with one thing, until it is taken back or its time is over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tenure.database.connect import ControlDatabase
from tenure.errors import Forbidden, InvalidArgument, NotFound
from tenure.identity.authorize import Principal, PrincipalKind, Resource, authorize
from tenure.identity.grants import GrantStore, granted
from tenure.identity.tokens import OWNER

pytest_plugins = ("fixtures.database",)

ANALYST, WRITER = (Principal(PrincipalKind.OFFICE, name) for name in ("analyst", "writer"))
SHARED = Resource("bucket", name="reports")


@pytest.fixture
def grants(control_database: ControlDatabase) -> GrantStore:
    return GrantStore(control_database)


async def test_a_grant_lets_its_principal_do_what_its_level_says_and_nobody_else(grants: GrantStore) -> None:
    with pytest.raises(Forbidden):
        authorize(ANALYST, "object:read", SHARED)
    await grants.grant(ANALYST, "bucket", "reports", "read", by=OWNER)
    theirs = granted(SHARED, await grants.find(ANALYST, "bucket", "reports"))
    authorize(ANALYST, "object:read", theirs)
    with pytest.raises(Forbidden):
        authorize(ANALYST, "object:write", theirs)
    with pytest.raises(Forbidden):
        authorize(WRITER, "object:read", granted(SHARED, await grants.find(WRITER, "bucket", "reports")))
    with pytest.raises(Forbidden):
        authorize(ANALYST, "object:read", granted(SHARED, await grants.find(ANALYST, "bucket", "others")))
    await grants.grant(ANALYST, "bucket", "reports", "write", by=OWNER)
    authorize(ANALYST, "object:write", granted(SHARED, await grants.find(ANALYST, "bucket", "reports")))
    assert [grant.level for grant in await grants.of_resource("bucket", "reports")] == ["write"]
    assert (await grants.revoke(ANALYST, "bucket", "reports")).level == "write"
    assert await grants.find(ANALYST, "bucket", "reports") is None
    with pytest.raises(NotFound):
        await grants.revoke(ANALYST, "bucket", "reports")


async def test_a_grant_ends_with_its_time(grants: GrantStore) -> None:
    now = datetime.now(UTC)
    await grants.grant(ANALYST, "database", "sales", "read", by=OWNER, expires_at=now + timedelta(hours=1))
    await grants.grant(WRITER, "database", "sales", "write", by=OWNER, expires_at=now - timedelta(seconds=1))
    assert [grant.principal for grant in await grants.of_resource("database", "sales")] == [ANALYST]
    assert await grants.find(WRITER, "database", "sales") is None
    assert await grants.of_principal(WRITER) == []
    assert [grant.principal for grant in await grants.take_expired()] == [WRITER]
    assert await grants.take_expired() == []


async def test_a_level_that_there_is_not_is_refused(grants: GrantStore) -> None:
    with pytest.raises(InvalidArgument, match="not a level"):
        await grants.grant(ANALYST, "bucket", "reports", "own", by=OWNER)


async def test_what_is_deleted_takes_its_grants_along(grants: GrantStore) -> None:
    for principal in (ANALYST, WRITER):
        for name in ("sales", "stock"):
            await grants.grant(principal, "database", name, "read", by=OWNER)
    assert [grant.name for grant in await grants.forget_principal(WRITER)] == ["sales", "stock"]
    await grants.forget_resource("database", "stock")
    assert [(grant.principal, grant.name) for grant in await grants.of_principal(ANALYST)] == [(ANALYST, "sales")]
    assert await grants.of_resource("database", "stock") == []
