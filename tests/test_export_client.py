"""What a client writes of an export is whole or not there; what it sends of an import is in order and known beforehand."""

from __future__ import annotations

import fcntl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fixtures.api import TOKENS, Api, error_of
from tenure import AsyncTenure, errors
from tenure.archive_head import Head, encode_head, new_id
from tenure.client.endpoint import Endpoint
from tenure.client.offices import fresh_file, whole_chain
from tenure.export_keys import Key, new_key, parse_key, read_key, write_key
from tenure.identity.authorize import Principal, PrincipalKind, Resource, is_allowed
from tenure.offices.archives.s3 import parse_place
from tenure.offices.archives.seal import sealed_head
from tenure.settings import Settings
from tenure.testing.fake_exports import FakeExports

pytest_plugins = ("fixtures.server",)


@pytest.fixture
def client(api: Api) -> AsyncTenure:
    return AsyncTenure(endpoint=Endpoint("http://tenure", api.socket, TOKENS.owner))


def exports_of_app(api: Api) -> FakeExports:
    exports: Any = api.app.state.services.exports
    return exports


def write_archive(path: Path, base: str | None = None, key: Key | None = None) -> Head:
    head = Head(new_id(), "analyst", datetime.now(UTC), base)
    path.write_bytes(encode_head(head if key is None else sealed_head(head, key)) + b"content")
    return head


async def test_an_export_that_breaks_off_leaves_no_file(api: Api, client: AsyncTenure, tmp_path: Path) -> None:
    exports_of_app(api).breaks = True
    (tmp_path / "a.tenure").write_text("the one of before")
    with pytest.raises(errors.ServerUnreachable):
        await client.agents("analyst").export(tmp_path / "a.tenure")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.tenure", "the one of before")]
    exports_of_app(api).breaks = False
    with (tmp_path / "a.tenure").open() as before:
        made = await client.agents("analyst").export(tmp_path / "a.tenure")
        assert before.read() == "the one of before"  # it was replaced, not written over
    assert made.destination == str(tmp_path / "a.tenure")
    assert (tmp_path / "a.tenure").read_bytes().endswith(b"not an archive: of a fake")
    later = await client.agents("analyst").export(tmp_path, since=tmp_path / "a.tenure")
    assert later.base == made.id


def test_a_file_in_the_making_is_not_taken_for_left_over(tmp_path: Path) -> None:
    (tmp_path / ".a.tenure.dead.part").write_text("of a killed one")
    (tmp_path / ".b.tenure.dead.part").write_text("of another target")
    with (tmp_path / ".a.tenure.live.part").open("w") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        with fresh_file(tmp_path / "a.tenure") as file:
            file.write(b"new")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.tenure", ".a.tenure.live.part", ".b.tenure.dead.part"}


@pytest.mark.parametrize(
    "address", ["/etc/cron.d/evil", "file:///etc/x", "http://x/y", "s3:/x/y", "s3://x", "s3://bucket/../x"]
)
def test_the_server_writes_to_s3_only(address: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        parse_place(address)


def test_offices_may_neither_export_nor_import() -> None:
    office = Principal(PrincipalKind.OFFICE, "analyst")
    for action in ("export:create", "export:list", "export:read", "export:schedule", "export:archive", "agent:create"):
        assert not is_allowed(office, action, Resource("export", owner="analyst"))


async def test_a_key_is_not_quoted_by_errors(api: Api) -> None:
    text = new_key().text
    async with api.client() as http:
        answer = await http.post("/v1/agents/analyst/export", json={"key": text + "x"})
        assert answer.status_code == 422
        assert "export-key" in str(error_of(answer)["hint"])
        assert text not in answer.text
        answer = await http.post("/v1/agents/analyst/export", json={"key": [text], "since": 5})
        assert answer.status_code == 422
        assert text not in answer.text


async def test_an_import_is_checked_before_it_is_sent(client: AsyncTenure, tmp_path: Path) -> None:
    key = new_key()
    write_archive(tmp_path / "a.tenure", key=key)
    for wrong, why in ((None, "no key was given"), (new_key(), "the wrong one")):
        with pytest.raises(errors.ArchiveError, match=why):
            await client.agents.import_(tmp_path / "a.tenure", name="new", key=wrong)
    (tmp_path / "junk").write_bytes(b"PK\x03\x04 something else")
    for path, error in ((tmp_path / "junk", errors.ArchiveError), (tmp_path / "missing", errors.NotFound)):
        with pytest.raises(error):
            await client.agents.import_(path, name="new")
    assert (await client.agents.import_(tmp_path / "a.tenure", name="new", key=key)).name == "new"
    with pytest.raises(errors.AlreadyExists):
        await client.agents.import_(tmp_path / "a.tenure", key=key)


def test_what_an_archive_continues_is_found_beside_it(tmp_path: Path) -> None:
    one = write_archive(tmp_path / "z-first.tenure")
    two = write_archive(tmp_path / "second.tenure", one.id)
    three = write_archive(tmp_path / "a-third.tenure", two.id)
    write_archive(tmp_path / "another.tenure")
    (tmp_path / "junk.tenure").write_bytes(b"x")
    found = whole_chain([tmp_path / "a-third.tenure"])
    assert [head.id for _, head in found] == [one.id, two.id, three.id]
    assert found[0][0] == tmp_path / "z-first.tenure"
    (tmp_path / "second.tenure").unlink()
    with pytest.raises(errors.ArchiveError, match=f"{two.id}, which is missing"):
        whole_chain([tmp_path / "a-third.tenure"])


def test_a_key_is_written_once_and_read_back(tmp_path: Path) -> None:
    key = new_key()
    write_key(tmp_path / "key", key)
    assert read_key(tmp_path / "key") == key
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(errors.AlreadyExists):
        write_key(tmp_path / "key", new_key())
    assert key.text not in repr(key)
    assert key.text not in repr(Settings(export_key=key.text))
    for wrong in ("", "x", key.text[:-4], key.text.replace("1:", "2:"), "\x00" * 60):
        with pytest.raises(errors.InvalidArgument):
            parse_key(wrong)


async def test_a_schedule_is_shown_and_ended(client: AsyncTenure) -> None:
    agent = client.agents("analyst")
    kept = await agent.keep_exporting("s3://copies/a/", every_s=120)
    assert kept.every_s == 120
    assert (await agent.exports()).schedule == kept
    await agent.stop_exporting()
    assert (await agent.exports()).schedule is None
    with pytest.raises(errors.InvalidArgument):
        await agent.keep_exporting("s3://copies/a/", every_s=1)
