"""Whatever comes in: every row of a file is in its table or among the rejects, its values are as the file has them, and nothing
else happens. Of the parser's own process are only the rows; what it may do, `test_parser_jail.py` asks."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenure.data.ingestion import parse, streams, types
from tenure.data.ingestion.batches import Rejects
from tenure.data.ingestion.lines import line_lists
from tenure.data.ingestion.names import COLUMNS_MAX, column_names, parse_table, table_of
from tenure.data.ingestion.plan import Hints, Plan
from tenure.data.ingestion.survey import survey
from tenure.errors import InvalidArgument, TooLarge, UsageError

ANY_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
PLAIN = st.text(st.characters(codec="ascii", min_codepoint=32), max_size=12)
VALUES = st.one_of(
    ANY_TEXT,
    PLAIN,
    st.integers().map(str),
    st.floats(allow_nan=False).map(repr),
    st.dates().map(str),
    st.sampled_from(["", "NA", "007", "1e5", '=cmd|" /C calc"!A0', "\\.", "\\N", "a\tb", "a\nb", "a\r\nb"]),
    st.sampled_from(["NULL", "-0", "1_0"]),
)
BYTES_OF_CSV = st.lists(
    st.sampled_from(
        [
            b",",
            b'"',
            b"\n",
            b"\r",
            b"\r\n",
            b"a",
            b"1",
            b"\0",
            b"\xff",
            b"\xc3",
            "ü".encode(),
            b";",
            b"\t",
            b"\\",
            b"''",
            b'""',
        ]
    ),
    max_size=60,
).map(b"".join)
many = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Read:
    """A file that went through survey and reading in this process."""

    def __init__(self, work: Path, data: bytes, name: str = "data", hints: Hints | None = None) -> None:
        path = work / "file"
        path.write_bytes(data)
        with path.open("rb") as file:
            self.plan = survey(file, len(data), name, hints or Hints(), work, path)
        for _ in range(6):
            rows, rejects = io.BytesIO(), io.BytesIO()
            with path.open("rb") as file:
                self.outcome = parse.read(
                    file, len(data), self.plan, rows, Rejects(rejects.write), work, [], numbered=False
                )
            if self.outcome.again is None:
                break
            self.plan = self.outcome.again
        self.copied, self.rejected = rows.getvalue(), rejects.getvalue()

    @property
    def rows(self) -> list[list[str | None]]:
        """As PostgreSQL reads them."""
        assert not self.copied or self.copied.endswith(b"\n")
        lines = self.copied.decode().split("\n")[:-1]
        return [[_field(field) for field in line.split("\t")] for line in lines]

    @property
    def rejects(self) -> list[tuple[int, str, str]]:
        lines = self.rejected.decode().split("\n")[:-1]
        found = [line.split("\t") for line in lines]
        return [(int(line), reason, _field(raw) or "") for line, reason, raw in found]


def _field(text: str) -> str | None:
    if text == "\\N":
        return None
    escapes = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    made, at = "", 0
    while at < len(text):
        if text[at] == "\\":
            made += escapes[text[at + 1]]
            at += 1
        else:
            made += text[at]
        at += 1
    return made


def written(rows: list[list[str]], **options: Any) -> bytes:
    out = io.StringIO()
    csv.writer(out, **options).writerows(rows)
    return out.getvalue().encode()


# --- values ---------------------------------------------------------------------------------------------------------------
@many
@given(
    rows=st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=30),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_every_value_of_a_well_formed_csv_comes_as_it_is(tmp_path: Path, rows: list[list[str]], end: str) -> None:
    data = written([["a", "b", "c"], *rows], lineterminator=end, quoting=csv.QUOTE_ALL)
    read = Read(tmp_path, data, "data.csv", Hints(delimiter=",", quote='"', header=True))
    assert read.outcome.rows + read.outcome.rejects == len(rows)
    assert read.outcome.rows == len(read.rows)
    types_of = [column.type for column in read.plan.columns]
    expected = [row for row in rows if not _is_rejected(row, types_of)]
    assert [[_same(value, kind) for value, kind in zip(row, types_of, strict=True)] for row in expected] == [
        [_same(value, kind) for value, kind in zip(row, types_of, strict=True)] for row in read.rows
    ]


def _is_rejected(row: list[str], kinds: list[str]) -> bool:
    return any(types.misfits(kind, [value]) for value, kind in zip(row, kinds, strict=True))


def _same(value: str | None, kind: str) -> str | None:
    """What it is worth: an empty field is null, and so is a word for nothing in what is not text."""
    if value is None or value == "" or (kind != types.TEXT and value.strip(" ") in types.NULLS):
        return None
    return value


@many
@given(data=BYTES_OF_CSV)
def test_every_line_of_a_hostile_csv_is_a_row_or_a_reject(tmp_path: Path, data: bytes) -> None:
    hints = Hints(delimiter=",", quote='"', header=False, encoding="utf-8", format="csv")
    text = data.decode("utf-8", "surrogateescape")
    lines = [line for line in io.StringIO(text, newline="") if line.strip("\r\n")]
    read = _read_or_refused(tmp_path, data, hints)
    if isinstance(read, str):
        assert not lines or "row" in read
        return
    assert read.outcome.rows == len(read.rows)
    assert read.outcome.rejects == len(read.rejects)
    assert all(len(row) == len(read.plan.columns) for row in read.rows)
    # A row may have several lines in it; of those, each but the first came through a quoted line end.
    within = sum(_line_ends(value) for row in read.rows for value in row if value)
    within += sum(_line_ends(raw.rstrip("\r\n")) for _, _, raw in read.rejects)
    assert len(lines) - within <= read.outcome.rows + read.outcome.rejects <= len(lines)


def _line_ends(text: str) -> int:
    return len(io.StringIO(text, newline="").readlines()) - 1 + text.endswith(("\n", "\r")) if text else 0


@many
@given(data=st.binary(max_size=300))
def test_any_bytes_at_all_are_loaded_or_told(tmp_path: Path, data: bytes) -> None:
    read = _read_or_refused(tmp_path, data)
    if isinstance(read, Read):
        assert read.outcome.rows == len(read.rows)
        read.copied.decode()
        assert b"\0" not in read.copied


def _read_or_refused(work: Path, data: bytes, hints: Hints | None = None) -> Read | str:
    """What was said instead; an error that is not the file's fault is none."""
    try:
        return Read(work, data, hints=hints)
    except UsageError as error:
        return error.message


@many
@given(pieces=st.lists(st.text("ab\r\n", max_size=8), max_size=12))
def test_lines_are_the_same_however_the_text_is_cut(pieces: list[str]) -> None:
    whole = io.StringIO("".join(pieces), newline="").readlines()
    found: list[str] = []
    for number, lines in line_lists(pieces, lambda *_: None):
        assert number == len(found) + 1
        found += lines
    assert found == whole


# --- types ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "2", "NA"], types.BIGINT),
        (["007", "12"], types.TEXT),
        (["1.5", "2", ""], types.DOUBLE),
        (["0.30000000000000004"], types.DOUBLE),
        (["12345678901234567890"], types.NUMERIC),
        (["0.123456789012345678901"], types.NUMERIC),
        (["1e400"], types.TEXT),
        (["true", "FALSE"], types.BOOLEAN),
        (["2020-02-29"], types.DATE),
        (["2020-02-30"], types.TEXT),
        (["2020-01-01", "2020-01-01 10:00"], types.TIMESTAMP),
        (["2020-01-01T10:00:00Z"], types.TIMESTAMPTZ),
        (["1_000"], types.TEXT),
        (["٣"], types.TEXT),
        (["", "NA"], types.TEXT),
    ],
)
def test_a_type_takes_only_what_postgresql_reads_back_as_the_same(values: list[str], kind: str) -> None:
    assert types.infer(values) == kind


@many
@given(values=st.lists(VALUES, max_size=20), kind=st.sampled_from(types.INFERRED))
def test_fast_and_slow_checks_of_a_column_agree(values: list[str], kind: str) -> None:
    one_by_one = [place for place, value in enumerate(values) if types.misfits(kind, [value])]
    assert types.misfits(kind, values) == one_by_one


def test_a_few_values_that_are_no_numbers_are_rejects_and_many_make_the_column_text(tmp_path: Path) -> None:
    few = ["n", *map(str, range(999)), "what?"]
    read = Read(tmp_path, "\n".join(few).encode())
    assert [column.type for column in read.plan.columns] == [types.BIGINT]
    assert read.rejects == [(1001, "'what?' in the column n is not bigint.", "what?")]
    late = ["n", *map(str, range(30_000)), *["word"] * 3000]
    read = Read(tmp_path, "\n".join(late).encode())
    assert [column.type for column in read.plan.columns] == [types.TEXT]
    assert (read.outcome.rows, read.outcome.rejects) == (33_000, 0)


# --- dialects and encodings -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_delimiters_and_encodings_are_found_out(tmp_path: Path, delimiter: str, encoding: str) -> None:
    rows = [["name", "price", "day"], *([f"Müller {at}", f"{at}.5", "2024-03-01"] for at in range(50))]
    text = "\r\n".join(delimiter.join(row) for row in rows)
    read = Read(tmp_path, text.encode(encoding))
    assert [(one.name, one.type) for one in read.plan.columns] == [
        ("name", "text"),
        ("price", "double precision"),
        ("day", "date"),
    ]
    assert read.rows == rows[1:]


def test_bytes_that_are_no_characters_cost_their_own_row_only(tmp_path: Path) -> None:
    good = b"".join(b"%d,x\n" % at for at in range(400_000))
    read = Read(tmp_path, b"n,t\n" + good + b"7,\xff\xfe\n8,a\0b\n9,fine\n")
    assert read.outcome.rows == 400_001
    assert [line for line, _, _ in read.rejects] == [400_002, 400_003]
    assert "\\xff" in read.rejects[0][2]


def test_a_quote_that_is_never_closed_costs_its_own_line_only(tmp_path: Path) -> None:
    lines = [b"a,b", *[b"1,2"] * 200_000, b'3,"open', *[b"4,5"] * 200_000]
    read = Read(tmp_path, b"\n".join(lines), hints=Hints(delimiter=",", quote='"', header=True))
    assert [line for line, _, _ in read.rejects] == [200_002]
    assert read.outcome.rows == 400_000


@pytest.mark.parametrize("name", ["gzip", "bz2", "xz", "zstd", "zip"])
def test_compressed_files_are_read_and_cut_ones_refused(tmp_path: Path, name: str) -> None:
    data = written([["n", "t"], *([str(at), f"text {at}"] for at in range(5000))])
    packed = _packed(name, data)
    assert Read(tmp_path, packed).outcome.rows == 5000
    with pytest.raises(InvalidArgument, match=r"damaged|cannot be read"):
        Read(tmp_path, packed[: len(packed) // 2])


def _packed(name: str, data: bytes) -> bytes:
    import bz2
    import lzma
    import zipfile

    import zstandard

    if name == "zip":
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data.csv", data)
        return out.getvalue()
    pack = {
        "gzip": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zstd": zstandard.ZstdCompressor().compress,
    }
    return pack[name](data)


def test_a_bomb_is_refused_before_it_bursts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RATIO_FREE_BYTES", 1024 * 1024)
    bomb = gzip.compress(b"n\n" + b"1\n" * 20_000_000)
    with pytest.raises(TooLarge, match="decompressed"):
        Read(tmp_path, bomb)


# --- JSON -------------------------------------------------------------------------------------------------------------------
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), ANY_TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(PLAIN, inner, max_size=3)),
    max_leaves=6,
)


@many
@given(
    rows=st.lists(st.dictionaries(st.sampled_from("abc"), JSON_VALUES, min_size=1), min_size=1, max_size=20),
    lines=st.booleans(),
)
def test_every_object_of_json_is_a_row_and_no_field_is_lost(
    tmp_path: Path, rows: list[dict[str, Any]], lines: bool
) -> None:
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    read = Read(tmp_path, text.encode(), "data.ndjson" if lines else "data.json")
    assert read.outcome.rows + read.outcome.rejects == len(rows)
    assert {column.source for column in read.plan.columns} == {name for row in rows for name in row}
    for column, at in ((column, at) for at, column in enumerate(read.plan.columns)):
        if column.type == types.JSONB and not read.outcome.rejects:
            assert [None if row[at] is None else json.loads(row[at] or "") for row in read.rows] == [
                row.get(column.source) for row in rows
            ]


def test_a_field_that_comes_late_becomes_a_column(tmp_path: Path) -> None:
    rows = [json.dumps({"a": at}) for at in range(100_000)] + [json.dumps({"a": 1, "late": "x"})]
    read = Read(tmp_path, "\n".join(rows).encode())
    assert [(column.name, column.type) for column in read.plan.columns] == [("a", "bigint"), ("late", "text")]
    assert read.rows[-1] == ["1", "x"]


def test_lines_that_are_no_objects_are_rejects(tmp_path: Path) -> None:
    read = Read(tmp_path, b'{"a": 1}\n[1]\n{"a":\n7\n{"a": 2}\n', "x.ndjson")
    assert [row[0] for row in read.rows] == ["1", "2"]
    assert [line for line, _, _ in read.rejects] == [2, 3, 4]


# --- names ------------------------------------------------------------------------------------------------------------------
@many
@given(
    names=st.lists(
        st.one_of(st.text(max_size=100), st.sampled_from(["", "a", "select", "xmin", "x" * 80])), max_size=40
    )
)
def test_columns_have_names_of_their_own_that_postgresql_can_hold(names: list[str]) -> None:
    made = column_names(names)
    assert len(made) == len(set(made)) == len(names)
    for name in made:
        assert 1 <= len(name.encode()) <= 63
        assert "\0" not in name
        assert name not in ("xmin", "ctid", "tableoid")


def test_more_columns_than_a_table_can_have_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="columns"):
        column_names(["x"] * (COLUMNS_MAX + 1))


@pytest.mark.parametrize(
    "name", ["", "a.", ".b", 'x"; drop table y; --', "a\nb", "x" * 64, "pg_catalog.x", "tenure.effects"]
)
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_table(name)


@many
@given(source=st.text(max_size=200))
def test_a_table_of_any_source_has_a_plain_name(source: str) -> None:
    assert parse_table(table_of(source)).name.isascii()


def test_a_plan_says_itself_and_comes_back() -> None:
    from tenure.data.ingestion.plan import Column, plan_from

    plan = Plan("csv", (Column("Ä", "Ä", "text", seen=False),), "gzip", "utf-8", ";", "'", "\\", False, 3)
    assert plan_from(plan.text) == plan
