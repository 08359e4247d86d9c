"""The same questions by the SDK and the command line, through the API, of a real database behind a fake office."""

from __future__ import annotations

import pytest

from databases import needs_root, office_database
from fixtures.api import Api
from fixtures.cli import Cli
from tenure.cli.commands.data import picture

pytest_plugins = ("fixtures.server", "fixtures.cli_process")
pytestmark = needs_root


async def test_a_person_looks_into_a_database_with_the_command_line(
    api: Api, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with office_database() as database:

        async def of(name: str) -> object:
            await api.offices.need(name)
            return database

        monkeypatch.setattr(api.offices, "database", of)
        script = "CREATE TABLE days (id int PRIMARY KEY, note text);"
        script += "INSERT INTO days SELECT i, 'day ' || i FROM generate_series(1, 90) i"
        assert (await cli("sql", "analyst", "--file", "-", stdin=script.encode())).code == 0
        assert (await cli("sql", "analyst", "delete from days", "--read-only")).code != 0
        assert "days" in (await cli("data", "describe", "analyst")).out
        assert "integer" in (await cli("data", "describe", "analyst", "days")).out
        sampled = await cli("data", "sample", "analyst", "days", "--rows", "3", "--json")
        assert len(sampled.json["rows"]) == 3
        assert "█" in (await cli("data", "profile", "analyst", "days", "--column", "id")).out
        assert (await cli("data", "profile", "analyst", "dayz")).code == 3
        assert (await cli("data", "results", "save", "analyst", "kept", "select count(*) as n from days")).code == 0
        shown = await cli("data", "results", "show", "analyst", "kept", "--json")
        assert shown.json["rows"] == [[90]]
        assert (await cli("data", "search", "create", "analyst", "notes", "days", "note")).code == 0
        assert "day 17" in (await cli("data", "search", "query", "analyst", "day 17", "--limit", "1")).out
        assert (await cli("data", "search", "drop", "analyst", "notes")).code == 0
        assert (await cli("data", "results", "drop", "analyst", "kept")).code == 0
        assert (await cli("data", "describe", "nobody")).code == 3


def test_a_picture_is_as_high_as_its_buckets_are_full() -> None:
    assert picture([0, 1, 8]) == " ▁█"
    assert picture([]) == ""
