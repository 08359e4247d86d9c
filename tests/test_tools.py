"""The office's tools: what a brain is told, and that what it asks for happens once, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tenure.brains.tools import OfficeTools, reference
from tenure.brains.tools.catalogue import CATALOGUE
from tenure.brains.tools.inside import replace as replacing
from tenure.brains.tools.words import cut
from tenure.errors import DiskFull, DoorClosed, LeaseLost, Unauthenticated
from tenure.faultpoints import Action, arm
from tenure.testing.fake_hands import FakeHands
from tenure.testing.faults import Fault, FaultyHands
from tenure.work.effects import Blocked
from tenure.work.failures import FailureClass
from tenure.work.hands import Hands, When
from tenure.work.thoughts import RESULT_CHARS_MAX, CallResult, Purpose
from tenure.work.toolbox import CallOrder

TOOLS = OfficeTools()
AGENT = "analyst"
PATIENCE_S = 30.0


def order(tool: str, arguments: dict[str, Any], key: str = "key", *, fresh: bool = True) -> CallOrder:
    return CallOrder(AGENT, "run_1", "node", key, tool, arguments, fresh)


@dataclass
class Desk:
    """Where the tests work: an office of the fake, with hands that fail on order."""

    office: FakeHands
    hands: FaultyHands
    home: Path
    number: int = 0
    came: list[str] = field(default_factory=list[str])
    """Requests that came to the server beside the office."""

    async def call(self, tool: str, **arguments: Any) -> CallResult:
        self.number += 1
        return told(await TOOLS.call(self.hands, order(tool, arguments, f"key{self.number}")))

    async def good(self, tool: str, **arguments: Any) -> str:
        result = await self.call(tool, **arguments)
        assert result.ok, result
        assert not result.unverified
        return result.output

    async def bad(self, tool: str, **arguments: Any) -> str:
        """What it says of a call that did nothing."""
        result = await self.call(tool, **arguments)
        assert (result.ok, result.unverified) == (False, False), result
        return result.output

    async def until_file(self, name: str) -> None:
        """Returns when there is something in the file."""
        file = self.home / name
        async with asyncio.timeout(PATIENCE_S):
            while not (file.exists() and file.stat().st_size):  # noqa: ASYNC110 - it comes from another process
                await asyncio.sleep(0.01)


def told(result: CallResult | Blocked) -> CallResult:
    assert isinstance(result, CallResult), result
    return result


@pytest.fixture
def desk(fake_hands: FakeHands, tmp_path: Path) -> Desk:
    return Desk(fake_hands, FaultyHands(fake_hands), tmp_path / "offices" / AGENT / "home")


@pytest.fixture
def requests() -> Iterator[tuple[str, list[str]]]:
    """(address, requests that came) of a server beside the office."""
    came: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
            came.append(f"{self.command} {self.path} {self.headers.get('x-given', '')} {body}".strip())
            if self.path == "/hang" or (self.path == "/once" and len(came) == 1):
                gone.wait(PATIENCE_S)
            self.send_response(404 if self.path == "/missing" else 200)
            self.send_header("content-type", "application/octet-stream" if self.path == "/bytes" else "text/plain")
            self.end_headers()
            self.wfile.write({"/bytes": b"\0\1\2", "/long": b"x" * 100_000}.get(self.path, b"answer"))

        do_GET = do_POST = do_DELETE = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    gone = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", came
    gone.set()
    server.shutdown()
    server.server_close()


# --- what there is ---------------------------------------------------------------------------------------------------------
def schemas(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from schemas(value)


@pytest.mark.parametrize("tool", CATALOGUE, ids=lambda tool: tool.name)
def test_every_tool_is_described_in_what_all_providers_take(tool: Any) -> None:
    parameters = tool.spec.parameters
    assert (parameters["type"], parameters["additionalProperties"]) == ("object", False)
    assert set(parameters["required"]) <= set(parameters["properties"])
    for name, one in parameters["properties"].items():
        assert one["type"] in ("string", "integer", "number", "boolean", "array"), name
        assert one["description"].endswith((".", "…")), name
    for part in schemas(parameters):
        assert not set(part) & {"$ref", "$defs", "anyOf", "oneOf", "allOf", "not", "const", "exclusiveMinimum"}
    assert tool.description.endswith(".")


def test_planning_is_given_only_what_reads() -> None:
    everything = [spec.name for spec in TOOLS.specs(Purpose.WORK)]
    assert everything == [spec.name for spec in TOOLS.specs(Purpose.MEND)] == [tool.name for tool in CATALOGUE]
    looking = {spec.name for spec in TOOLS.specs(Purpose.PLAN)}
    assert (
        looking
        == {spec.name for spec in TOOLS.specs(Purpose.REPLAN)}
        == {name for name in everything if TOOLS.reads(name)}
    )
    assert looking >= {"read_file", "search_files", "query", "note_read", "goal_state"}
    assert not looking & {"shell", "sql", "write_file", "http_request", "message_owner"}
    assert not TOOLS.reads("no such tool")


async def test_what_reads_changes_nothing(desk: Desk) -> None:
    for tool, arguments in (
        ("write_file", {"path": "a.txt", "content": "one\n"}),
        ("note_write", {"name": "n.md", "content": "note"}),
        ("object_put", {"bucket": "b", "name": "o", "text": "text"}),
        ("sql", {"statement": "create table t (n integer)"}),
        ("service_start", {"name": "s", "command": "exec sleep 600"}),
        ("goal_start", {"goal": "g"}),
        ("save_result", {"name": "r", "query": "select 1 as n"}),
        ("index_text", {"name": "t", "table": "t", "columns": ["n"]}),
    ):
        await desk.good(tool, **arguments)
    run_id = next(iter(desk.office.runs()))
    root = desk.home.parent
    parts = [root / part for part in ("home", "objects", "snapshots", "database.sqlite")]

    def state() -> list[tuple[str, bytes]]:
        files = [
            path for part in parts for path in (sorted(part.rglob("*")) if part.is_dir() else [part]) if path.is_file()
        ]
        return [(str(path), path.read_bytes()) for path in files]

    before, runs = state(), desk.office.runs()
    reading: dict[str, dict[str, Any]] = {
        "describe_data": {},
        "sample_rows": {"table": "t"},
        "profile_table": {"table": "t"},
        "read_result": {"name": "r"},
        "list_results": {},
        "search_text": {"query": "x"},
        "service_logs": {"name": "s"},
        "service_list": {},
        "read_file": {"path": "a.txt"},
        "list_files": {},
        "find_files": {"pattern": "*"},
        "search_files": {"pattern": "one"},
        "query": {"statement": "select count(*) from t"},
        "object_read": {"bucket": "b", "name": "o"},
        "object_list": {},
        "note_list": {},
        "note_read": {"name": "n.md"},
        "goal_state": {"run": run_id},
        "schedule_list": {},
        "webhook_deliveries": {},
    }
    assert reading.keys() == {tool.name for tool in CATALOGUE if tool.reads}
    for tool, arguments in reading.items():
        await desk.good(tool, **arguments)
    assert "readonly" in await desk.bad("query", statement="insert into t values (1)")
    assert (state(), desk.office.runs(), desk.office.messages(AGENT)) == (before, runs, [])


def test_the_document_says_what_there_is() -> None:
    text = (Path(__file__).parent.parent / "docs" / "tools.md").read_text()
    assert text == reference.document(), "write it anew: python -m tenure.brains.tools.reference"


# --- what a brain is told --------------------------------------------------------------------------------------------------
async def test_what_is_wrong_with_a_call_is_said_and_nothing_is_done(desk: Desk) -> None:
    for tool, arguments, says in (
        ("shel", {}, "There is no tool 'shel'. Did you mean shell"),
        ("shell", {}, "command is missing"),
        ("shell", {"comand": "x", "command": "x"}, "'comand' is not an argument. Did you mean command?"),
        ("shell", {"command": "x", "timeout_s": "soon"}, "timeout_s: Input should be a valid number"),
        ("shell", {"command": "x", "timeout_s": float("inf")}, "timeout_s"),
        ("shell", {"command": "echo \0"}, "NUL"),
        ("shell", {"command": ["echo"]}, "command: Input should be a valid string"),
        ("sql", {"statement": ""}, "statement"),
        ("write_file", {"path": "a", "content": "ö" * 400_000}, "Write it in parts"),
        ("edit_file", {"path": "a", "old": "x", "new": "x"}, "are the same"),
        ("object_put", {"bucket": "b", "name": "n"}, "give either path or text"),
        ("service_start", {"name": "../x", "command": "true"}, "name"),
        ("note_write", {"name": "../x", "content": ""}, "name"),
    ):
        assert says in await desk.bad(tool, **arguments)
    assert desk.hands.calls == []


async def test_null_stands_for_what_is_left_out(desk: Desk) -> None:
    assert await desk.good("shell", command="pwd", cwd=None, timeout_s=None) == str(desk.home)


async def test_a_shell_tells_output_and_exit_code(desk: Desk) -> None:
    assert await desk.good("shell", command="echo out; echo err >&2") == "out\nerr"
    assert await desk.bad("shell", command="echo so; exit 7") == "so\n[exit code 7]"
    assert await desk.bad("shell", command="exit 1") == "[exit code 1]"
    assert "ended after its timeout of 1 s" in await desk.bad("shell", command="echo begun; sleep 600", timeout_s=1)
    assert await desk.good("shell", command='echo "$TENURE_RUN $TENURE_STEP $TENURE_KEY"') == "run_1 node key5"


async def test_long_output_is_cut_in_the_middle_and_says_so(desk: Desk) -> None:
    said = await desk.good("shell", command="echo first; head -c 50000 /dev/zero | tr '\\0' x; echo; echo last")
    assert len(said) <= RESULT_CHARS_MAX
    assert said.startswith("first\n")
    assert said.endswith("\nlast")
    assert "characters left out here" in said
    said = await desk.good("shell", command="echo first; head -c 200000 /dev/zero | tr '\\0' x; echo; echo last")
    assert len(said) <= RESULT_CHARS_MAX
    assert said.endswith("\nlast")
    assert "bytes were not kept" in said
    assert cut("x" * 100, "there", 60) == cut("x" * 100, "there", 60)
    for length in (59, 60, 61, 1000):
        assert len(cut("x" * length, "there", 60)) <= 60
    assert cut("x" * 60, "there", 60) == "x" * 60


async def test_files_are_written_read_and_edited(desk: Desk) -> None:
    content = "".join(f"line {number}\n" for number in range(1, 2501))
    assert "made; it has" in await desk.good("write_file", path="deep/er/a.txt", content=content)
    said = await desk.good("read_file", path="deep/er/a.txt")
    assert said.startswith("     1\tline 1\n")
    assert said.endswith("[lines 1 to 1000 of 2500; go on with first_line=1001]")
    said = await desk.good("read_file", path="~/deep/er/a.txt", first_line=2499)
    assert said == "  2499\tline 2499\n  2500\tline 2500\n[to the end, line 2500]"
    assert "has 2500 lines" in await desk.bad("read_file", path="deep/er/a.txt", first_line=9999)
    assert "1 place, the first in line 77" in await desk.good(
        "edit_file", path="deep/er/a.txt", old="line 77\n", new="no\n"
    )
    said = await desk.bad("edit_file", path="deep/er/a.txt", old="line 24", new="x")
    assert "is in" in said
    assert "(lines 24, 240, 241" in said
    assert "111 places" in await desk.good("edit_file", path="deep/er/a.txt", old="line 24", new="x", all=True)
    assert "white space only" in await desk.bad("edit_file", path="deep/er/a.txt", old="  no\n", new="x")
    assert "Did you mean" in await desk.bad("read_file", path="deep/er/b.txt")
    assert "Did you mean" in await desk.bad("read_file", path="depe/er/a.txt")
    assert "is a directory" in await desk.bad("read_file", path="deep")
    (desk.home / "bytes").write_bytes(b"\0\1")
    assert "is not text" in await desk.bad("read_file", path="bytes")
    (desk.home / "empty").touch(mode=0o600)
    assert "is empty" in await desk.good("read_file", path="empty")
    await desk.good("write_file", path="empty", content="now")
    assert (desk.home / "empty").stat().st_mode & 0o777 == 0o600
    (desk.home / "link").symlink_to("empty")
    await desk.good("edit_file", path="link", old="now", new="then")
    assert (desk.home / "link").is_symlink()
    assert (desk.home / "empty").read_text() == "then"
    (desk.home / "crlf").write_bytes(b"one\r\ntwo\r\n")
    await desk.good("edit_file", path="crlf", old="one\ntwo", new="1\n2")
    assert (desk.home / "crlf").read_bytes() == b"1\r\n2\r\n"
    (desk.home / "latin").write_bytes(b"caf\xe9 one")
    await desk.good("edit_file", path="latin", old="one", new="two")
    assert (desk.home / "latin").read_bytes() == b"caf\xe9 two", "bytes that are no text stay as they are"
    assert not list(desk.home.rglob("*.new"))


async def test_a_long_line_and_a_wide_character_fit_into_a_result(desk: Desk) -> None:
    await desk.good(
        "write_file", path="wide", content="\U0001f600" * 5000 + "\n" + "語" * 1500 + "\n" + "語\n" * 30_000
    )
    said = await desk.good("read_file", path="wide", lines=10_000)
    assert len(said) <= RESULT_CHARS_MAX
    assert "[… 3000 more characters in this line]" in said
    last = int(said.rpartition("first_line=")[2].rstrip("]"))
    assert f"\n{last - 1:6}\t語\n" in said
    assert (await desk.good("read_file", path="wide", first_line=last)).startswith(f"{last:6}\t")


async def test_names_and_lines_are_found(desk: Desk) -> None:
    for path in ("a.py", "src/b.py", "src/deep/c.py", "src/deep/d.txt", "node_modules/e.py", ".git/f.py"):
        await desk.good("write_file", path=path, content=f"# {path}\nword = 1\n")

    async def found(**arguments: Any) -> list[str]:
        return [
            path.removeprefix(f"{desk.home}/") for path in (await desk.good("find_files", **arguments)).splitlines()
        ]

    assert await found(pattern="*.py") == await found(pattern="**/*.py") == ["a.py", "src/b.py", "src/deep/c.py"]
    assert await found(pattern="src/**/*.py") == ["src/b.py", "src/deep/c.py"]
    assert await found(pattern="deep/*", path="src") == ["src/deep/c.py", "src/deep/d.txt"]
    assert await found(pattern="node_modules/*") == ["node_modules/e.py"]
    assert "Nothing below" in await desk.good("find_files", pattern="*.rs")
    said = await desk.good("search_files", pattern=r"^WORD\s", ignore_case=True, glob="*.py", path="src")
    assert said == f"{desk.home}/src/b.py:2: word = 1\n{desk.home}/src/deep/c.py:2: word = 1"
    assert await desk.good("search_files", pattern="word", path="a.py") == f"{desk.home}/a.py:2: word = 1"
    assert "No line" in await desk.good("search_files", pattern="nowhere")
    assert "not a regular expression" in await desk.bad("search_files", pattern="(")
    assert "Did you mean" in await desk.bad("search_files", pattern="x", path="srcc")
    listed = (await desk.good("list_files", path="src")).splitlines()
    assert [line.split()[-1] for line in listed] == [f"{desk.home}/src:", "deep/", "b.py"]


async def test_edits_at_the_same_time_do_not_undo_each_other(desk: Desk) -> None:
    words = [f"word{number}" for number in range(8)]
    await desk.good("write_file", path="a", content="\n".join(words))
    edits = (desk.good("edit_file", path="a", old=word, new=word.upper()) for word in words)
    await asyncio.gather(*edits)
    assert (desk.home / "a").read_text() == "\n".join(words).upper()


async def test_services_run_under_one_name_each_and_are_told(desk: Desk) -> None:
    assert await desk.good("service_list") == "There are no services."
    assert "There is no service web." in await desk.bad("service_logs", name="web")
    await desk.good("service_start", name="web", command="echo one; echo two; exec sleep 600")
    assert "runs already" in await desk.bad("service_start", name="web", command="touch second")
    assert (await desk.good("service_logs", name="web", lines=1)).splitlines()[1:] == ["two"]
    assert "Did you mean web?" in await desk.bad("service_stop", name="wed")
    assert await desk.good("service_stop", name="web") == "web was stopped."
    assert await desk.good("service_stop", name="web") == "web does not run."
    assert "exit code 3 instead of running on.\noops" in await desk.bad(
        "service_start", name="web", command="echo oops; exit 3"
    )
    await desk.good("service_start", name="web", command="exec sleep 600", cwd="/")
    assert (await desk.good("service_list")).startswith("web: runs since")
    assert not (desk.home / "second").exists()


async def test_rows_are_lines_and_what_does_not_fit_is_counted(desk: Desk) -> None:
    await desk.good("sql", statement="create table t (n integer, word text); insert into t values (1, 'ä'), (2, null)")
    said = await desk.good("query", statement="select * from t order by n")
    assert said.splitlines()[1:] == ['["n", "word"]', '[1, "ä"]', "[2, null]"]
    assert "more than these 1 rows" in await desk.good("sql", statement="select * from t", rows_max=1)
    long = "select replace(hex(zeroblob(20000)), '0', 'x') as wide union all select 'b' union all select 'c'"
    assert "[0 of 3 rows shown" in await desk.good("query", statement=long)
    assert "no such table: absent" in await desk.bad("sql", statement="select * from absent")


async def test_objects_and_notes_are_kept_and_found_again(desk: Desk) -> None:
    assert await desk.good("note_list") == "There are no notes yet."
    await desk.good("note_write", name="how.md", content="# How")
    await desk.good("note_write", name="how.md", content="like this", append=True)
    assert await desk.good("note_read", name="how.md") == "# How\nlike this"
    assert (desk.home / "notes" / "how.md").read_text() == "# How\nlike this"
    assert await desk.good("note_list") == "how.md: # How"
    assert "Did you mean how.md?" in await desk.bad("note_read", name="hov.md")
    await desk.good("object_put", bucket="b", name="x/y", path="notes/how.md")
    assert await desk.good("object_read", bucket="b", name="x/y") == "# How\nlike this"
    assert "Did you mean x/y?" in await desk.bad("object_read", bucket="b", name="x/z")
    assert "There is no object" in await desk.bad("object_to_file", bucket="b", name="x/z", path="z")
    assert "There is no file" in await desk.bad("object_put", bucket="b", name="x", path="nothing")
    await desk.good("object_to_file", bucket="b", name="x/y", path="copy")
    assert (desk.home / "copy").read_text() == "# How\nlike this"
    assert (await desk.good("object_list", bucket="b", prefix="x/")).split() == ["15", "b/x/y"]
    await desk.good("object_delete", bucket="b", name="x/y")
    assert "There is no object" in await desk.bad("object_delete", bucket="b", name="x/y")


async def test_requests_tell_status_headers_and_text(desk: Desk, requests: tuple[str, list[str]]) -> None:
    url, came = requests
    said = await desk.good("http_request", url=f"{url}/a", headers=["X-Given: yes"])
    assert said.startswith("HTTP 200 OK\n")
    assert "content-type: text/plain" in said.lower()
    assert said.endswith("\n\nanswer")
    await desk.good("http_request", url=f"{url}/b", method="POST", body="sent")
    assert came == ["GET /a yes", "POST /b  sent"]
    assert (await desk.bad("http_request", url=f"{url}/missing")).startswith("HTTP 404")
    assert "3 bytes of application/octet-stream" in await desk.good("http_request", url=f"{url}/bytes")
    assert "100000 bytes in all" in await desk.good("http_request", url=f"{url}/long")
    assert "not an address" in await desk.bad("http_request", url="file:///etc/passwd")
    assert "not a header" in await desk.bad("http_request", url=url, headers=["nonsense"])
    assert "Connection refused" in await desk.bad("http_request", url="http://127.0.0.1:1/", method="POST")


async def test_a_request_without_an_answer_is_unverified_unless_it_only_reads(
    desk: Desk, requests: tuple[str, list[str]]
) -> None:
    url, came = requests
    assert "No answer" in await desk.bad("http_request", url=f"{url}/hang", timeout_s=1)
    result = await desk.call("http_request", url=f"{url}/hang", timeout_s=1, method="POST")
    assert (result.ok, result.unverified) == (False, True)
    assert "ask before it is sent again" in result.output
    assert came == ["GET /hang", "POST /hang"]


async def test_goals_are_started_looked_at_and_cancelled(desk: Desk) -> None:
    desk.office.add_agent("other")
    said = await desk.good("goal_start", goal="count", agent="other")
    run_id = said.split(" ")[0]
    assert desk.office.runs()[run_id]["parent"] == "run_1"
    desk.office.end_run(run_id, "failed", "No numbers.")
    assert await desk.good("goal_state", run=run_id) == f"{run_id} of other: failed\nNo numbers."
    assert "failed" in await desk.good("goal_cancel", run=run_id)
    strange = (await desk.office.start_run(AGENT, "g", key="strange", parent="run_2")).id
    assert "was not begun by this run" in await desk.bad("goal_cancel", run=strange)
    assert desk.office.runs()[strange]["state"] == "queued"
    assert "There is no agent" in await desk.bad("goal_start", goal="count", agent="nobody")
    assert "There is no run" in await desk.bad("goal_state", run="run_0")


# --- what fails ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Effect:
    """A call with an effect that can be counted, and the methods of `Hands` that it stands on."""

    tool: str
    arguments: dict[str, Any]
    count: Callable[[Desk], int]
    methods: tuple[str, ...]
    points: tuple[str, ...] = ()


def lines_of(name: str) -> Callable[[Desk], int]:
    def count(desk: Desk) -> int:
        file = desk.home / name
        return len(file.read_text().splitlines()) if file.exists() else 0

    return count


def rows(desk: Desk) -> int:
    async def ask() -> int:
        return (await desk.office.sql(AGENT, "select count(*) from t", read_only=True)).rows[0][0]

    return asyncio.run(ask())


def objects(desk: Desk) -> int:
    return len([path for path in (desk.home.parent / "objects").rglob("*") if path.is_file()])


COMMAND = ("start_command", "command_status")
STARTED = ("effect.call.before/node", "effect.call.after/node")
EFFECTS = (
    Effect("shell", {"command": "echo x >> effects; sleep 0.1"}, lines_of("effects"), COMMAND, STARTED),
    Effect(
        "service_start",
        {"name": "s", "command": "echo x >> effects; exec sleep 600"},
        lambda desk: asyncio.run(desk.until_file("effects")) or lines_of("effects")(desk),
        COMMAND,
    ),
    Effect("note_write", {"name": "n", "content": "x", "append": True}, lines_of("notes/n"), COMMAND[:1]),
    Effect("write_file", {"path": "w", "content": "x\n"}, lines_of("w"), COMMAND[:1]),
    Effect(
        "edit_file", {"path": "e", "old": "o", "new": "o\no"}, lambda desk: lines_of("e")(desk) - 1, COMMAND, STARTED
    ),
    Effect("sql", {"statement": "insert into t values (1)"}, rows, ("sql",)),
    Effect("message_owner", {"subject": "s"}, lambda desk: len(desk.office.messages(AGENT)), ("notify",)),
    Effect("snapshot", {"name": "s"}, lambda desk: len(desk.office.snapshots(AGENT)), ("keep_snapshot",)),
    Effect("goal_start", {"goal": "g"}, lambda desk: len(desk.office.runs()), ("start_run",)),
    Effect(
        "schedule_create",
        {"name": "s", "goal": "g", "every": "1d"},
        lambda desk: _schedules(desk, "s"),
        ("create_schedule",),
    ),
    Effect("schedule_delete", {"name": "old"}, lambda desk: 1 - _schedules(desk, "old"), ("delete_schedule",)),
    Effect("save_result", {"name": "r", "query": "select 1 as n"}, lambda desk: _kept(desk, "result"), ("ask_data",)),
    Effect(
        "index_text", {"name": "i", "table": "t", "columns": ["n"]}, lambda desk: _kept(desk, "index"), ("ask_data",)
    ),
    Effect("object_put", {"bucket": "b", "name": "o", "text": "t"}, objects, ("write_object",)),
    Effect("object_put", {"bucket": "b", "name": "o", "path": "e"}, objects, ("put_object",)),
    Effect("object_to_file", {"bucket": "in", "name": "o", "path": "f"}, lines_of("f"), ("object_to_file",)),
    Effect("object_delete", {"bucket": "in", "name": "o"}, lambda desk: 1 - objects(desk), ("delete_object",)),
    Effect("goal_cancel", {"run": "RUN"}, lambda desk: _cancelled(desk), ("cancel_run",)),
    Effect(
        "service_stop",
        {"name": "old"},
        lambda desk: int(not _runs(desk)),
        ("stop_command", "command_status", "read_file"),
    ),
    Effect("http_request", {"url": "URL", "method": "POST"}, lambda desk: len(desk.came), COMMAND, STARTED),
)


def _kept(desk: Desk, kind: str) -> int:
    question, field = ("list_results", "results") if kind == "result" else ("list_indexes", "indexes")
    return len(asyncio.run(desk.office.ask_data(AGENT, question, {}))[field])


def _schedules(desk: Desk, name: str) -> int:
    return [one.name for one in asyncio.run(desk.office.list_schedules(AGENT))].count(name)


def _cancelled(desk: Desk) -> int:
    return len([run for run in desk.office.runs().values() if run["state"] == "cancelled"])


def _runs(desk: Desk) -> bool:
    """Whether the service `old` still has its lock."""
    with (desk.home / ".tenure" / "services" / "old.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


async def prepared(desk: Desk, effect: Effect, requests: tuple[str, list[str]]) -> CallOrder:
    """The call, in an office that has what it needs."""
    url, desk.came = requests
    (desk.home / "e").write_text("o\n")
    await desk.office.sql(AGENT, "create table t (n integer)")
    arguments = dict(effect.arguments)
    match effect.tool:
        case "goal_cancel":
            arguments["run"] = (await desk.office.start_run(AGENT, "g", key="earlier", parent="run_1")).id
        case "object_to_file" | "object_delete":
            await desk.office.write_object(AGENT, "in", "o", b"x\n", key="earlier")
        case "service_stop":
            await desk.good("service_start", name="old", command="exec sleep 600")
        case "schedule_delete":
            await desk.office.create_schedule(AGENT, "old", "g", When(every_s=86_400), key="earlier")
        case "http_request":
            arguments["url"] = url
        case _:
            pass
    return order(effect.tool, arguments)


def test_every_tool_with_an_effect_is_among_the_effects() -> None:
    assert {effect.tool for effect in EFFECTS} == {tool.name for tool in CATALOGUE if not tool.reads}


def named(effect: object) -> str:
    if isinstance(effect, bool):
        return "nothing happened" if effect else "answer lost"
    return f"{effect.tool}-{effect.methods[0]}" if isinstance(effect, Effect) else str(effect)


def faults() -> Iterator[tuple[Effect, str, bool]]:
    for effect in EFFECTS:
        for method in effect.methods:
            yield effect, method, True
            yield effect, method, False


@pytest.mark.parametrize(("effect", "method", "before"), list(faults()), ids=named)
def test_an_office_that_fails_blocks_a_call_which_by_its_key_is_done_once(
    desk: Desk, requests: tuple[str, list[str]], effect: Effect, method: str, before: bool
) -> None:
    wanted = asyncio.run(prepared(desk, effect, requests))
    fault = desk.hands.add(method, lambda: DoorClosed("It closed."), before=before)
    result = asyncio.run(TOOLS.call(desk.hands, wanted))
    assert fault.fired == 1
    assert isinstance(result, Blocked), result
    assert result.failure.kind is FailureClass.DOOR
    last = told(asyncio.run(TOOLS.call(desk.hands, replace(wanted, fresh=False))))
    assert (last.ok, last.unverified) == (True, False), last
    assert effect.count(desk) == 1


def points() -> Iterator[tuple[Effect, str]]:
    for effect in EFFECTS:
        for point in (f"tool.{effect.tool}.before/node", *effect.points, f"tool.{effect.tool}.after/node"):
            yield effect, point


@pytest.mark.parametrize(("effect", "point"), list(points()), ids=named)
def test_a_worker_killed_at_any_point_leaves_a_call_that_is_done_once(
    desk: Desk, requests: tuple[str, list[str]], tmp_path: Path, effect: Effect, point: str
) -> None:
    wanted = asyncio.run(prepared(desk, effect, requests))
    log = tmp_path / "fired"
    victim = os.fork()
    if victim == 0:
        try:
            arm(point, 1, Action.KILL, log=log)
            asyncio.run(TOOLS.call(desk.office, wanted))
        finally:
            os._exit(1)
    _, status = os.waitpid(victim, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert log.read_text() == f"{point}:1:kill\n", "the fault did not fire"
    for _ in range(2):
        result = told(asyncio.run(TOOLS.call(desk.office, replace(wanted, fresh=False))))
        assert (result.ok, result.unverified) == (True, False), result
        assert effect.count(desk) == 1


def test_a_service_outlives_the_worker_that_started_it(desk: Desk) -> None:
    wanted = order("service_start", {"name": "web", "command": "echo up; exec sleep 600"})
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(TOOLS.call(desk.office, wanted))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert asyncio.run(desk.good("service_list")).startswith("web: runs since")
    assert asyncio.run(desk.good("service_logs", name="web")).endswith("\nup")


async def test_errors_are_told_to_who_can_mend_them(desk: Desk) -> None:
    desk.hands.add("sql", lambda: DiskFull("The office's disk is full."))
    assert "Delete files" in await desk.bad("sql", statement="select 1")
    for error, kind in (
        (Unauthenticated("Who?"), FailureClass.AUTHENTICATION),
        (KeyError("bug"), FailureClass.INTERNAL),
    ):
        desk.hands.add("sql", lambda error=error: error)
        result = await TOOLS.call(desk.hands, order("sql", {"statement": "select 1"}))
        assert isinstance(result, Blocked)
        assert result.failure.kind is kind
    desk.hands.add("sql", lambda: LeaseLost("Another worker has it."))
    with pytest.raises(LeaseLost):
        await TOOLS.call(desk.hands, order("sql", {"statement": "select 1"}))
    assert [fault.fired for fault in desk.hands.faults] == [1, 1, 1, 1]


# --- the sandbox dies --------------------------------------------------------------------------------------------------------
async def begun(desk: Desk, hands: Hands, wanted: CallOrder, mark: str) -> asyncio.Task[CallResult | Blocked]:
    call = asyncio.create_task(TOOLS.call(hands, wanted))
    await desk.until_file(mark)
    return call


async def test_a_command_that_was_lost_is_unverified_and_not_repeated(desk: Desk) -> None:
    wanted = order("shell", {"command": "echo x >> effects; exec sleep 600"})
    call = await begun(desk, desk.hands, wanted, "effects")
    await desk.office.restart(AGENT)
    for result in (await call, await TOOLS.call(desk.hands, replace(wanted, fresh=False))):
        assert told(result).unverified
        assert not told(result).ok
        assert "look before doing it again" in told(result).output
    assert (desk.home / "effects").read_text() == "x\n"


async def test_a_service_that_was_lost_is_unverified_and_can_be_started_again(desk: Desk) -> None:
    wanted = order("service_start", {"name": "web", "command": "echo x >> effects; exec sleep 600"})
    assert told(await TOOLS.call(desk.hands, wanted)).ok
    await desk.office.restart(AGENT)
    assert told(await TOOLS.call(desk.hands, replace(wanted, fresh=False))).unverified
    assert "ended with the sandbox" in await desk.good("service_list")
    await desk.good("service_start", name="web", command="exec sleep 600")
    assert (desk.home / "effects").read_text() == "x\n"


async def test_what_only_looks_looks_again(desk: Desk) -> None:
    os.mkfifo(desk.home / "pipe")
    slow = "[ -e ~/looked ] || { echo > ~/looked; read line < ~/pipe; }"
    (desk.home / "bin").mkdir()
    (desk.home / "notes").mkdir()
    (desk.home / "notes" / "n.md").write_text("about")
    head = desk.home / "bin" / "head"
    head.write_text(f'#!/bin/bash\n{slow}\nexec /usr/bin/head "$@"\n')
    head.chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{desk.home}/bin:{path}"
    try:
        call = await begun(desk, desk.hands, order("note_list", {}), "looked")
        await desk.office.restart(AGENT)
        assert told(await call).output == "n.md: about"
    finally:
        os.environ["PATH"] = path


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_request_that_was_lost_is_made_again_only_if_it_reads(
    desk: Desk, requests: tuple[str, list[str]], method: str
) -> None:
    url, came = requests
    wanted = order("http_request", {"url": f"{url}/once", "method": method})
    call = asyncio.create_task(TOOLS.call(desk.hands, wanted))
    async with asyncio.timeout(PATIENCE_S):
        while not came:  # noqa: ASYNC110 - it comes to another thread
            await asyncio.sleep(0.01)
    await desk.office.restart(AGENT)
    result = told(await call)
    assert (result.ok, result.unverified) == (method == "GET", method == "POST")
    assert came == [f"{method} /once"] * (2 if method == "GET" else 1)


async def test_a_change_that_had_not_begun_is_said_not_to_have_happened(desk: Desk) -> None:
    await desk.good("write_file", path="a", content="old")
    with (desk.home / ".tenure" / "edits" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # so it waits before it does anything
        wanted = order("write_file", {"path": "a", "content": "new"})
        call = asyncio.create_task(TOOLS.call(desk.hands, wanted))
        async with asyncio.timeout(PATIENCE_S):
            while "start_command key" not in desk.hands.calls:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await desk.office.restart(AGENT)
    result = told(await call)
    assert (result.ok, result.unverified) == (False, False)
    assert "before anything was changed" in result.output
    assert (desk.home / "a").read_text() == "old"


class Killed(BaseException):
    """The sandbox ended here."""


DIED_AT = ("note written", "noted", "new file made", "new file written", "put in place", "told")


@pytest.mark.parametrize("died_at", DIED_AT)
@pytest.mark.parametrize("do", ["write", "edit", "make"])
def test_whenever_the_sandbox_dies_a_change_is_told_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any, do: str, died_at: str
) -> None:
    """The program that runs inside, killed before or after each thing that it does to the disk."""
    monkeypatch.setattr(replacing, "RECORDS", str(tmp_path / "edits"))
    file = tmp_path / "file"
    if do != "make":
        file.write_text("old text")
    fired: list[str] = []
    fsync, rename, real_open = os.fsync, os.rename, open
    steps = iter(DIED_AT)

    def reached(name: str) -> None:
        assert next(steps) == name
        if name == died_at:
            fired.append(name)
            raise Killed

    def fake_fsync(fd: int) -> None:
        fsync(fd)
        reached("note written" if not (tmp_path / "edits").joinpath(record).exists() else "new file written")

    def fake_rename(old: str, new: str) -> None:
        rename(old, new)
        reached("put in place" if new == str(file) else "noted")

    def fake_open(path: str, mode: str = "r") -> Any:
        opened = real_open(path, mode)
        if mode == "xb":
            reached("new file made")
        return opened

    record = Path(replacing._record("key")).name  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(os, "fsync", fake_fsync)
    monkeypatch.setattr(os, "rename", fake_rename)
    monkeypatch.setattr(replacing, "open", fake_open, raising=False)
    monkeypatch.setattr(replacing, "_prune", lambda: reached("told"))
    wanted: dict[str, Any] = {"key": "key", "path": str(file)}
    if do == "edit":
        wanted |= {"do": "edit", "old": "old", "new": "new", "all": False}
    else:
        wanted |= {"do": "write", "content": "new text", "append": False}
    with pytest.raises(Killed):
        replacing.replace(wanted)
    assert fired == [died_at]
    monkeypatch.undo()
    monkeypatch.setattr(replacing, "RECORDS", str(tmp_path / "edits"))
    happened = file.exists() and file.read_text() == "new text"
    assert happened is (DIED_AT.index(died_at) >= DIED_AT.index("put in place"))
    assert settled() == (0 if happened else 65)
    file.write_text("changed by somebody else")
    assert settled() == (65 if died_at == "note written" else 67)
    capfdbinary.readouterr()


def settled() -> int:
    try:
        replacing.settle({"key": "key"})
    except SystemExit as end:
        return int(str(end.code))
    return 0


# --- data ----------------------------------------------------------------------------------------------------------------
async def test_a_brain_sees_what_data_there_is_and_keeps_results(desk: Desk) -> None:
    assert "There are no tables yet." in await desk.good("describe_data")
    await desk.good("sql", statement="create table notes (id integer primary key, words text)")
    await desk.good("sql", statement="insert into notes values (1, 'a late invoice'), (2, 'a red apple')")
    assert "notes (table): id INTEGER, words TEXT" in await desk.good("describe_data")
    assert '"primary_key": ["id"]' in await desk.good("describe_data", table="notes")
    assert '[1, "a late invoice"]' in await desk.good("sample_rows", table="notes", rows=1)
    assert '"distinct": 2' in await desk.good("profile_table", table="notes")
    assert "results" in await desk.good("save_result", name="counted", query="select count(*) as n from notes")
    assert "[2]" in await desk.good("read_result", name="counted")
    assert "counted" in await desk.good("list_results")
    assert "is there" in await desk.good("index_text", name="notes", table="notes", columns=["words"])
    assert "a late invoice" in await desk.good("search_text", query="invoice")
    assert "Nothing fits." in await desk.good("search_text", query="zebra")


async def test_what_is_wrong_with_a_question_about_data_is_told(desk: Desk) -> None:
    assert "no table 'none'" in await desk.bad("profile_table", table="none")
    assert "There is no result" in await desk.bad("read_result", name="none")
    assert "name" in await desk.bad("save_result", name="Not A Name", query="select 1")


async def test_a_result_whose_answer_was_lost_is_saved_once(desk: Desk) -> None:
    await desk.good("sql", statement="create table seen (n integer)")
    desk.hands.faults.append(fault := Fault("ask_data", lambda: DoorClosed("lost"), before=False))
    first = await TOOLS.call(desk.hands, order("save_result", {"name": "r", "query": "select 1 as n"}, "k"))
    assert isinstance(first, Blocked)
    assert fault.fired == 1
    await desk.good("sql", statement="drop table results_r; create table results_r (n integer)")
    again = told(await TOOLS.call(desk.hands, order("save_result", {"name": "r", "query": "select 1 as n"}, "k")))
    assert again.ok
    assert "[1]" not in await desk.good("read_result", name="r"), "it was saved again"
