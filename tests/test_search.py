"""Search over text columns: it finds, it follows the table whatever dies, and no index makes the server call anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from databases import needs_root, office_database
from tenure.data.database import OfficeDatabase
from tenure.data.query.plane import DataPlane
from tenure.data.query.search import refreshing
from tenure.data.query.search.embedder import Embedder
from tenure.data.query.search.hashing import HashingEmbedder
from tenure.data.query.search.models import Models
from tenure.data.query.search.openai import OpenAiEmbedder
from tenure.errors import (
    AlreadyExists,
    DatabaseError,
    InvalidArgument,
    InvalidName,
    ModelError,
    NotFound,
    TenureError,
    Unauthenticated,
)
from tenure.settings import Settings
from tenure.testing.embedder_conformance import CHECKS, check_embedder
from tenure.testing.model_server import Down, ModelServer, Raw, Refuse

pytestmark = needs_root
in_module = pytest.mark.asyncio(loop_scope="module")
ODD = '"; drop table notes; --'
ODD_QUOTED = '"' + ODD.replace('"', '""') + '"'
KEY = {"SOME_KEY": "sk-test"}


# --- embedders --------------------------------------------------------------------------------------------------------
async def test_the_embedder_that_is_always_there_keeps_the_contract() -> None:
    assert len(await check_embedder(HashingEmbedder())) == len(CHECKS)


@pytest.mark.parametrize("dimensions", [None, 64])
async def test_an_openai_compatible_model_keeps_the_contract(dimensions: int | None) -> None:
    with ModelServer([], key=KEY["SOME_KEY"]) as server:
        embedder = OpenAiEmbedder("m", server.base_url, key_env="SOME_KEY", dimensions=dimensions, environ=KEY)
        assert len(await check_embedder(embedder)) == len(CHECKS)
        await embedder.close()
        assert await embedder.dimension() == (dimensions or 128)
        assert server.embedded[0].headers["authorization"] == "Bearer sk-test"


class Sloppy(HashingEmbedder):
    """Breaks the contract in one way."""

    def __init__(self, how: str) -> None:
        self.how = how

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        found = await super().embed(texts)
        if self.how == "order":
            return found[::-1]
        if self.how == "length":
            return [[2 * value for value in vector] for vector in found]
        return found[:-1] if self.how == "count" and found else found


@pytest.mark.parametrize("how", ["order", "length", "count"])
async def test_the_kit_sees_a_broken_embedder(how: str) -> None:
    with pytest.raises(AssertionError, match=r"e0\d_"):
        await check_embedder(Sloppy(how))


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (Refuse(429, "slow down", "rate_limit"), ModelError),
        (Refuse(500, "broken", "server_error"), ModelError),
        (Refuse(404, "no such model", "not_found"), InvalidArgument),
        (Refuse(401, "wrong key sk-test", "invalid_api_key"), Unauthenticated),
        (Raw(b"<html>", "text/html"), ModelError),
        (Raw(b'{"data": []}', "application/json"), ModelError),
        (Raw(b'{"data": [{"index": 0, "embedding": ["x"]}]}', "application/json"), ModelError),
        (Raw(b'{"data": [{"index": 0, "embedding": [NaN]}]}', "application/json"), ModelError),
        (Down(1), ModelError),
    ],
)
async def test_a_model_that_fails_is_told_as_that_and_no_key_is_shown(fault: Any, raised: type[TenureError]) -> None:
    with ModelServer([], key=KEY["SOME_KEY"]) as server:
        server.embedding_faults.append(fault)
        embedder = OpenAiEmbedder("m", server.base_url, key_env="SOME_KEY", environ=KEY)
        with pytest.raises(raised) as error:
            await embedder.embed(["text"])
        await embedder.close()
        assert server.embedding_faults == []
        assert "sk-test" not in str(error.value.to_payload())


async def test_openais_key_goes_to_openai_only() -> None:
    with ModelServer([]) as server:
        embedder = OpenAiEmbedder("m", server.base_url, environ={"OPENAI_API_KEY": "sk-secret"})
        await embedder.embed(["text"])
        await embedder.close()
        assert all("authorization" not in seen.headers for seen in server.embedded)
    with pytest.raises(Unauthenticated):
        await OpenAiEmbedder("m", environ={}).embed(["text"])


def test_the_installation_says_which_models_there_are() -> None:
    assert Models.of(Settings()).names == ["local:512"]
    models = Models.of(Settings(embeddings_model="m", embeddings_url="http://127.0.0.1:1/v1"))
    assert models.names == ["openai:m", "local:512"]
    assert models.get().name == "openai:m"
    assert models.get("local").name == "local:512"
    with pytest.raises(InvalidArgument, match="no model 'http://evil'"):
        models.get("http://evil")


# --- indexes ----------------------------------------------------------------------------------------------------------
@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def db() -> AsyncIterator[OfficeDatabase]:
    async with office_database() as database:
        yield database


@pytest_asyncio.fixture(loop_scope="module")
async def plane(db: OfficeDatabase) -> AsyncIterator[DataPlane]:
    await db.execute(
        "DROP TABLE IF EXISTS notes CASCADE; CREATE TABLE notes (id serial PRIMARY KEY, title text, body text, year int);"
        "INSERT INTO notes (title, body, year) SELECT 'note ' || i, 'nothing of interest, number ' || i, 2000 + i % 20 "
        "FROM generate_series(1, 150) i;"
        "INSERT INTO notes (title, body, year) VALUES ('Invoice', 'The invoice of March was paid late', 2014),"
        " ('Weather', 'Anomalous days of the weather in Seattle', 2012), (NULL, NULL, 2000), ('', '', 2000)"
    )
    made = DataPlane(db, Models(), "tester")
    yield made
    for index in await made.list_indexes():
        await made.drop_index(index.name)


def ids(found: Any) -> list[str]:
    return [hit.key["id"] for hit in found.hits]


async def best(plane: DataPlane, query: str, **how: Any) -> str:
    _, found = await plane.search(query, **how)
    return found.hits[0].text if found.hits else ""


@in_module
async def test_a_search_finds_inflections_misspelt_words_and_exact_ones(plane: DataPlane) -> None:
    made = await plane.create_index("notes", "notes", ["title", "body"])
    assert (made.rows, made.pending, made.dimension, made.made_by) == (152, 0, 512, "tester")
    assert "paid late" in await best(plane, "late payment of invoices")
    assert "Seattle" in await best(plane, "anomolous wether")
    assert await best(plane, "number 77") == "note 77\nnothing of interest, number 77"
    _, found = await plane.search("invoice", limit=3, columns=["year", "title"])
    assert (found.hits[0].row, found.hits[0].key) == ({"year": 2014, "title": "Invoice"}, {"id": "151"})
    assert len(found.hits) == 3
    assert found.hits[0].similarity > found.hits[1].similarity


@in_module
async def test_a_search_is_narrowed_by_a_condition_that_cannot_get_out(plane: DataPlane, db: OfficeDatabase) -> None:
    await plane.create_index("notes", "notes", ["title", "body"])
    _, found = await plane.search("nothing of interest", where="year = 2007", columns=["year"], limit=100)
    assert {hit.row["year"] for hit in found.hits} == {2007}
    assert len(found.hits) == 8
    assert (await plane.search("invoice", where="year = 1"))[1].hits == []
    for text in ("true); DROP TABLE notes; --", "true /*", "true) OR (true"):
        with pytest.raises(InvalidArgument):
            await plane.search("invoice", where=text)
    with pytest.raises(DatabaseError):
        await plane.search("invoice", where="nextval('notes_id_seq') > 0")


@in_module
async def test_an_index_follows_its_table(plane: DataPlane, db: OfficeDatabase) -> None:
    await plane.create_index("notes", "notes", ["title", "body"])
    await db.execute(
        "UPDATE notes SET body = 'a zebra crossing' WHERE id = 5; DELETE FROM notes WHERE id = 151;"
        "INSERT INTO notes (title, body) VALUES ('New', 'an entirely fresh aardvark'); UPDATE notes SET id = 9000 WHERE id = 6"
    )
    (index,) = await plane.list_indexes()
    assert index.pending == 5
    assert "zebra" in await best(plane, "zebra")
    assert "aardvark" in await best(plane, "aardvarks")
    assert "invoice" not in (await best(plane, "invoice paid late")).lower()
    (index,) = await plane.list_indexes()
    assert (index.pending, index.rows) == (0, 152)
    await db.execute("TRUNCATE notes")
    assert (await plane.search("zebra"))[1].hits == []


@in_module
async def test_what_is_rolled_back_was_never_changed(plane: DataPlane, db: OfficeDatabase) -> None:
    await plane.create_index("notes", "notes", ["body"])
    with pytest.raises(DatabaseError):
        await db.execute("UPDATE notes SET body = 'x'; SELECT 1 / 0")
    (index,) = await plane.list_indexes()
    assert index.pending == 0


class Stopping(HashingEmbedder):
    """Waits before it answers, so that something can happen meanwhile; or dies."""

    def __init__(self) -> None:
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        self.fails = False

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.asked.set()
        await self.go_on.wait()
        if self.fails:
            raise ModelError("gone")
        return await super().embed(texts)


@in_module
async def test_a_row_changed_while_it_is_embedded_is_embedded_again(plane: DataPlane, db: OfficeDatabase) -> None:
    await plane.create_index("notes", "notes", ["body"])
    await db.execute("UPDATE notes SET body = 'before' WHERE id = 1")
    (index,) = await plane.list_indexes()
    slow = Stopping()
    refresh = asyncio.create_task(refreshing.refresh(db, index, slow, rows_max=1))
    await slow.asked.wait()
    await db.execute("UPDATE notes SET body = 'afterwards' WHERE id = 1")
    slow.go_on.set()
    assert await refresh == 1
    (index,) = await plane.list_indexes()
    assert index.pending == 1, "the change was lost"
    assert (await db.execute("SELECT count(*) FROM search.rows_notes WHERE content = 'before'")).rows == [[0]]
    assert await best(plane, "afterwards") == "afterwards"


@in_module
async def test_a_model_that_dies_in_the_middle_loses_nothing(plane: DataPlane, db: OfficeDatabase) -> None:
    await plane.create_index("notes", "notes", ["body"])
    await db.execute("UPDATE notes SET body = body || ' giraffe'")
    (index,) = await plane.list_indexes()
    dead = Stopping()
    dead.fails = True
    dead.go_on.set()
    with pytest.raises(ModelError):
        await refreshing.refresh(db, index, dead)
    assert dead.asked.is_set()
    (index,) = await plane.list_indexes()
    assert index.pending == 154
    await asyncio.gather(*(plane.refresh_index("notes") for _ in range(3)))
    (index,) = await plane.list_indexes()
    assert (index.pending, index.rows) == (0, 153)
    assert "giraffe" in await best(plane, "giraffe")


@in_module
async def test_a_table_and_columns_named_by_somebody_who_means_harm(plane: DataPlane, db: OfficeDatabase) -> None:
    first, second, text = '"a"";"', '"b\\\'"', '"t""x;"'
    await db.execute(
        f"DROP TABLE IF EXISTS {ODD_QUOTED}; CREATE TABLE {ODD_QUOTED} ({first} text, {second} int, {text} text, "
        f"PRIMARY KEY ({first}, {second})); INSERT INTO {ODD_QUOTED} VALUES ('k;''\"', 1, 'a quiet armadillo')"
    )
    await plane.create_index("odd", ODD, ['t"x;'])
    _, found = await plane.search("armadillo", index="odd", columns=['t"x;'])
    assert found.hits[0].row == {'t"x;': "a quiet armadillo"}
    assert found.hits[0].key == {'a";': "k;'\"", "b\\'": "1"}
    await db.execute(f"DELETE FROM {ODD_QUOTED}")
    assert (await plane.search("armadillo", index="odd"))[1].hits == []
    await plane.drop_index("odd")
    triggers = f"SELECT count(*) FROM pg_trigger WHERE tgrelid = to_regclass('{ODD_QUOTED}') AND NOT tgisinternal"
    assert (await db.execute(triggers)).rows == [[0]]
    await db.execute(f"DROP TABLE {ODD_QUOTED}")
    assert (await db.execute("SELECT count(*) FROM notes")).rows == [[154]]


@in_module
async def test_what_cannot_be_is_said(plane: DataPlane, db: OfficeDatabase) -> None:
    await db.execute("CREATE TABLE IF NOT EXISTS keyless (t text); CREATE OR REPLACE VIEW seen AS SELECT * FROM notes")
    for ask, raised in (
        (plane.create_index("x", "keyless", ["t"]), InvalidArgument),
        (plane.create_index("x", "seen", ["title"]), InvalidArgument),
        (plane.create_index("x", "notes", ["none"]), InvalidArgument),
        (plane.create_index("x", "nowhere", ["t"]), NotFound),
        (plane.create_index("X'", "notes", ["title"]), InvalidName),
        (plane.create_index("x", "notes", ["title"], "http://127.0.0.1:1/v1"), InvalidArgument),
        (plane.search("x"), NotFound),
        (plane.search("x", index="none"), NotFound),
    ):
        with pytest.raises(raised):
            await ask
    await plane.create_index("one", "notes", ["title"])
    with pytest.raises(AlreadyExists):
        await plane.create_index("one", "notes", ["title"])
    await plane.create_index("two", "notes", ["body"])
    with pytest.raises(InvalidArgument, match="several"):
        await plane.search("x")
    await db.execute("DROP VIEW seen")


@in_module
async def test_an_index_that_an_agent_rewrote_makes_the_server_call_nobody(
    plane: DataPlane, db: OfficeDatabase
) -> None:
    """Its rows are the agent's to write."""
    await plane.create_index("notes", "notes", ["body"])
    with ModelServer([]) as server:
        for model in (server.base_url, f"openai:{server.base_url}", "openai:m"):
            await db.execute(f"UPDATE search.indexes SET model = '{model}'")
            with pytest.raises(InvalidArgument, match="no model"):
                await plane.search("x")
        assert server.embedded == []
    await db.execute("UPDATE search.indexes SET name = 'a\"; drop table notes; --'")
    assert await plane.list_indexes() == []
    await db.execute("DROP SCHEMA search CASCADE")


@in_module
async def test_an_index_of_another_model_says_what_to_do(db: OfficeDatabase, plane: DataPlane) -> None:
    with ModelServer([]) as server:
        embedder: Embedder = OpenAiEmbedder("m", server.base_url)
        other = DataPlane(db, Models([embedder]), "tester")
        made = await other.create_index("notes", "notes", ["body"])
        assert (made.model, made.dimension) == ("openai:m", 128)
        assert "invoice" in await best(other, "invoice")
        await embedder.close()
    with pytest.raises(InvalidArgument, match="no model 'openai:m'"):
        await plane.search("invoice")
