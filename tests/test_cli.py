"""The `tenure` command keeps its promises: bytes and exit codes as they are, errors with a hint, JSON on every command."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from datetime import UTC, datetime, timedelta
from fcntl import ioctl
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures.api import PLAYBOOK, Api, eventually
from fixtures.cli import PATIENCE_S, Cli
from tenure import errors, wire
from tenure.cli import reference
from tenure.cli.exit_codes import MEANINGS
from tenure.cli.output import printable
from tenure.cli.timeline import bars, lines_of, render

pytest_plugins = ("fixtures.server", "fixtures.cli_process")

DOCS = Path(__file__).parent.parent / "docs"
EVERY_BYTE = bytes(range(256))


# --- exec and shell ------------------------------------------------------------------------------------------------------
async def test_exec_carries_every_byte_both_ways(cli: Cli) -> None:
    data = EVERY_BYTE * 12_000  # 3 MB: more than any buffer on the way
    done = await cli("exec", "analyst", "--", "cat", stdin=data)
    assert (done.code, done.stdout, done.stderr) == (0, data, b"")


async def test_exec_keeps_stdout_and_stderr_apart_and_ends_with_the_commands_code(cli: Cli) -> None:
    assert (await cli("exec", "analyst", "--", "exit", "37")).code == 37
    done = await cli("exec", "analyst", "--", "complain", "no such thing")
    assert (done.code, done.stdout, done.stderr) == (1, b"", b"no such thing\n")


async def test_exec_passes_arguments_exactly(cli: Cli) -> None:
    done = await cli("exec", "analyst", "--user", "root", "--", "echo", "--json", "-x", "a  b", "ü", "")
    assert done.stdout == "--json -x a  b ü \n".encode()


async def test_all_of_a_large_output_arrives_through_a_pipe(cli: Cli) -> None:
    process = await cli.start("exec", "analyst", "--", "spew", str(60 * 1024**2))
    assert process.stdout is not None
    seen = 0
    while piece := await process.stdout.read(1 << 20):
        seen += len(piece)
    assert (await process.wait(), seen) == (0, 60 * 1024**2)


async def test_a_reader_that_goes_away_ends_a_command_that_prints_a_gigabyte(api: Api, cli: Cli) -> None:
    process = await cli.start("exec", "analyst", "--", "spew", str(1024**3))
    assert process.stdout is not None
    assert process.stderr is not None
    await process.stdout.readexactly(10)
    process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
    assert await process.stderr.read() == b""
    assert await process.wait() == 141
    await eventually(lambda: api.offices.sessions[-1].closed)


async def test_exec_does_not_wait_for_a_stdin_that_nobody_closes(cli: Cli) -> None:
    process = await cli.start("exec", "analyst", "--", "echo", "hello")
    assert process.stdout is not None
    assert await process.stdout.read() == b"hello\n"
    assert await process.wait() == 0


async def test_ctrl_c_goes_to_the_command(api: Api, cli: Cli) -> None:
    process = await cli.start("exec", "analyst", "--", "hang")
    await eventually(lambda: bool(api.offices.sessions))
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 128 + signal.SIGINT
    assert api.offices.sessions[-1].signals == [signal.SIGINT]


async def test_a_command_that_takes_too_long_is_ended_with_sigterm_first(api: Api, cli: Cli) -> None:
    done = await cli("exec", "analyst", "--timeout", "0.3", "--", "hang")
    assert done.code == 8
    assert "--timeout" in done.err
    assert api.offices.sessions[-1].signals == [signal.SIGTERM]


async def test_exec_with_json_answers_with_output_and_exit_code(cli: Cli) -> None:
    done = await cli("exec", "analyst", "--json", "--", "spew", str(2 * 1024**2))
    assert (done.code, done.json["exit_code"], done.json["stdout_bytes"]) == (0, 0, 2 * 1024**2)
    assert done.json["truncated"]
    failed = await cli("--json", "exec", "analyst", "--", "complain", "ü")
    assert (failed.code, failed.json["exit_code"], failed.json["stderr"]) == (1, 1, "ü\n")


async def test_exec_refuses_arguments_that_are_too_large(cli: Cli) -> None:
    done = await cli("exec", "analyst", "--", "echo", *["x" * 100_000] * 12)
    assert done.code == 2
    assert "stdin" in done.err


async def test_a_command_without_separator_is_told_about_it(cli: Cli) -> None:
    done = await cli("exec", "analyst", "ls", "-l")
    assert done.code == 2
    assert "tenure exec analyst -- ls -l" in done.err


async def test_shell_has_a_terminal_follows_its_size_and_puts_it_back(api: Api, cli: Cli) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = await cli.start("shell", "analyst", stdin=theirs, stdout=theirs, stderr=theirs)
    await eventually(lambda: bool(api.offices.sessions))
    await eventually(lambda: not termios.tcgetattr(theirs)[3] & termios.ICANON)  # raw by now
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
    process.send_signal(signal.SIGWINCH)
    await eventually(lambda: (31, 97) in api.offices.sessions[-1].sizes)
    os.write(ours, b"\x03typed")  # Ctrl-C is a byte like any other
    echoed = b""
    while not echoed.endswith(b"\x03typed"):
        echoed += await asyncio.to_thread(os.read, ours, 100)
    await api.offices.sessions[-1].send_eof()  # the fake shell ends at the end of its input
    assert await process.wait() == 0
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


async def test_shell_without_a_terminal_reads_commands_from_stdin(cli: Cli) -> None:
    assert (await cli("shell", "analyst", stdin=b"echo hi\n")).stdout == b"echo hi\n"  # the fake shell is cat


# --- errors --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "words",
    [
        ("agent", "list"),
        ("exec", "analyst", "--", "ls"),
        ("shell", "analyst"),
        ("sql", "analyst", "select 1"),
        ("cp", "analyst:a", "b"),
        ("ssh-proxy", "analyst"),
        ("status",),
        ("inbox",),
    ],
)
async def test_a_stopped_server_ends_with_6_and_says_how_to_start_it(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = await Cli(tmp_path)(*words)
    assert (done.code, done.stdout) == (6, b"")
    assert done.err.startswith("error: ")
    assert "tenure up" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("agent", "show", "nobody"),
        ("agent", "delete", "nobody", "--yes"),
        ("exec", "nobody", "--", "ls"),
        ("shell", "nobody"),
        ("sleep", "nobody"),
        ("logs", "nobody"),
        ("logs", "nobody", "-f"),
        ("sql", "nobody", "select 1"),
        ("objects", "list", "nobody"),
        ("objects", "get", "analyst", "reports/none.md"),
        ("cp", "nobody:a", "."),
        ("cp", "/does/not/exist", "analyst:"),
        ("cp", "analyst:none", "."),
        ("runs", "show", "run_000000000000"),
        ("runs", "follow", "run_000000000000"),
        ("inbox", "read", "msg_0"),
        ("run", "analyst", "goal", "--playbook", "/does/not/exist.yaml"),
        ("ssh", "analyst"),
        ("logs", "--server"),
    ],
)
async def test_what_does_not_exist_ends_with_3(cli: Cli, words: tuple[str, ...]) -> None:
    done = await cli(*words)
    assert (done.code, done.stdout) == (3, b"")
    assert done.err.startswith("error: ")


@pytest.mark.parametrize(
    "words",
    [
        ("agent", "create", "Not_A_Name"),
        ("agent", "create", "b", "--memory", "much"),
        ("agent", "create", "b", "--cpus", "-1"),
        ("agent", "create", "b", "--egress", "no domain"),
        ("agent", "delete", "analyst"),
        ("exec", "../etc", "--", "ls"),
        ("exec", "analyst"),
        ("exec", "analyst", "--env", "=x", "--", "ls"),
        ("exec", "analyst", "--user", "mallory", "--", "ls"),
        ("sql", "analyst", " "),
        ("snapshot", "create", "analyst", "--name", "Not_A_Name"),
        ("snapshot", "restore", "analyst", "../x"),
        ("fork", "analyst", "Not_A_Name"),
        ("sql", "analyst", "select 1", "--rows-max", "0"),
        ("cp", "a", "b"),
        ("cp", "analyst:a", "analyst:b"),
        ("objects", "get", "analyst", "no-slash"),
        ("objects", "put", "analyst", "/etc", "bucket/name"),
        ("objects", "get", "analyst", "bucket/../x"),
        ("runs", "list", "--state", "lazy"),
        ("runs", "show", "../agents"),
        ("run", "analyst", "goal"),
        ("run", "analyst", "goal", "--input", "novalue", "--playbook", "x"),
        ("logs",),
        ("agent",),
        ("fly",),
        ("agent", "list", "--colour"),
    ],
)
async def test_bad_input_ends_with_2(cli: Cli, words: tuple[str, ...]) -> None:
    plain, as_json = await asyncio.gather(cli(*words), cli("--json", *words))
    assert (plain.code, plain.stdout) == (2, b"")
    assert plain.err.startswith("error: ")
    assert (as_json.code, as_json.stderr) == (2, b"")
    assert set(as_json.json["error"]) == {"code", "message", "hint", "retryable", "details"}


async def test_options_that_contradict_each_other_are_refused(cli: Cli) -> None:
    assert (await cli("sql", "analyst", "select 1", "--csv", "--json")).code == 2
    assert (await cli("exec", "analyst", "--tty", "--json", "--", "ls")).code == 2
    assert (await cli("logs", "analyst", "--server")).code == 2


async def test_a_name_that_is_taken_ends_with_4_and_a_wrong_token_with_5(cli: Cli) -> None:
    assert (await cli("agent", "create", "analyst")).code == 4
    refused = await cli("agent", "list", env={"TENURE_TOKEN": "guessed"})
    assert refused.code == 5
    assert (await cli("exec", "analyst", "--", "ls", env={"TENURE_TOKEN": "guessed"})).code == 5


async def test_something_else_at_the_address_is_a_clear_error(cli: Cli) -> None:
    async def teapot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 418 Teapot\r\nContent-Length: 5\r\n\r\nshort")
        writer.close()

    server = await asyncio.start_server(teapot, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for words in (("agent", "list"), ("exec", "analyst", "--", "ls")):
        done = await cli(*words, env={"TENURE_URL": url})
        assert done.code == 1
        assert "418" in done.err
    server.close()
    assert (await cli("agent", "list", env={"TENURE_URL": url})).code == 6
    assert (await cli("agent", "list", env={"TENURE_URL": "ftp://x"})).code == 2
    assert (await cli("agent", "list", env={"TENURE_PORT": "many"})).code == 2


async def test_an_error_with_json_is_the_apis_payload_on_stdout(cli: Cli) -> None:
    done = await cli("agent", "show", "nobody", "--json")
    assert (done.code, done.json["error"]["code"], done.stderr) == (3, "not_found", b"")


async def test_a_mistyped_command_gets_a_suggestion(cli: Cli) -> None:
    assert "'agent'" in (await cli("agnt", "list")).err


async def test_an_error_cannot_steer_the_terminal() -> None:
    assert printable("\x1b]0;title\x07 red\x1b[31m\n") == "�]0;title� red�[31m\n"


# --- answers -------------------------------------------------------------------------------------------------------------
async def test_agents_are_made_listed_shown_slept_woken_and_deleted(cli: Cli) -> None:
    flags = ("--cpus", "2", "--memory", "2g", "--disk", "512m", "--egress", "pip,apt", "--egress", "example.org")
    assert (await cli("agent", "create", "b2", *flags)).out == "b2 is awake.\n"
    shown = (await cli("agent", "show", "b2", "--json")).json
    assert shown["limits"]["memory_mb"] == 2048
    assert shown["limits"]["disk_gb"] == 0.5
    assert shown["egress"] == ["pip", "apt", "example.org"]
    assert (await cli("sleep", "b2")).out == "b2 is stopped.\n"
    listed = (await cli("agent", "list", "--json")).json["agents"]
    assert {agent["name"]: agent["state"] for agent in listed} == {"analyst": "awake", "b2": "stopped"}
    assert (await cli("wake", "b2", "--json")).json["state"] == "awake"
    assert (await cli("agent", "delete", "b2", "--yes")).code == 0
    assert "b2" not in (await cli("agent", "list")).out


async def test_ssh_keys_are_added_listed_and_removed(cli: Cli, tmp_path: Path) -> None:
    assert (await cli("ssh-key", "list")).out == ""
    key = asyncssh.generate_private_key("ssh-ed25519", comment="me@here")
    key.write_private_key(tmp_path / "key")
    key.write_public_key(tmp_path / "key.pub")
    refused = await cli("ssh-key", "add", str(tmp_path / "key"))
    assert (refused.code, "private key" in refused.err) == (2, True)
    assert (await cli("ssh-key", "add", str(tmp_path / "nothing"))).code == 3
    added = (await cli("ssh-key", "add", "-", "--json", stdin=(tmp_path / "key.pub").read_bytes())).json
    assert added["comment"] == "me@here"
    listed = (await cli("ssh-key", "list")).out
    assert added["fingerprint"] in listed
    assert "never" in listed
    assert (await cli("ssh-key", "remove", added["fingerprint"])).code == 0
    assert (await cli("ssh-key", "list", "--json")).json == {"keys": []}
    assert (await cli("ssh-key", "remove", added["id"])).code == 3


async def test_ssh_config_says_when_there_is_no_gateway(cli: Cli) -> None:
    refused = await cli("ssh-config")
    assert (refused.code, "TENURE_SSH_PORT" in refused.err) == (4, True)


async def test_preview_prints_a_link(cli: Cli) -> None:
    done = await cli("preview", "analyst", "8000", "--path", "/a?b=c")
    assert done.out.startswith("http://8000--analyst.localhost:7800/.tenure/open?ticket=")
    assert done.out.endswith("&to=%2Fa%3Fb%3Dc\n")
    assert (await cli("preview", "analyst", "8000", "--json")).json["origin"] == "http://8000--analyst.localhost:7800"
    assert (await cli("preview", "nobody", "8000")).code == 3
    assert (await cli("preview", "analyst", "8000", "--path", "x")).code == 2
    assert (await cli("preview", "analyst", "0")).code == 2


async def test_an_office_is_rebuilt_and_its_history_is_shown(cli: Cli) -> None:
    assert (await cli("agent", "history", "analyst", "--json")).json == {"events": []}
    done = await cli("rebuild", "analyst")
    assert "analyst has a new root (awake)." in done.out
    assert "cowsay" in done.out
    before = (await cli("snapshot", "list", "analyst", "--json")).json["snapshots"][0]["id"]
    assert f"tenure snapshot restore analyst {before}" in done.out
    assert (await cli("rebuild", "analyst", "--json")).json["set_up"]["packages"] == ["cowsay"]
    shown = (await cli("agent", "history", "analyst")).out.splitlines()
    assert "rebuilt" in shown[1]
    assert before in shown[1], "the oldest comes first"
    assert len((await cli("agent", "history", "analyst", "-n", "1", "--json")).json["events"]) == 1


async def test_snapshots_are_taken_listed_compared_restored_forked_and_deleted(cli: Cli) -> None:
    assert (await cli("snapshot", "create", "analyst", "--name", "before")).out == "before\n"
    unnamed = (await cli("snapshot", "create", "analyst", "--json")).json["id"]
    compared = await cli("snapshot", "diff", "analyst", "before", unnamed)
    assert compared.out == (
        "+ /home/agent/a\n~ table public.t\ufffd: rows: 1 changed\n    ~ id='1': a null → '\\x1b[31m'\n"
    )
    assert "There is a bound." in compared.err
    assert (await cli("snapshot", "diff", "analyst", "before", "--no-tables")).out == "+ /home/agent/a\n"
    restored = await cli("snapshot", "restore", "analyst", "before")
    undo = restored.out.split("tenure snapshot restore analyst ")[1].strip()
    listed = (await cli("snapshot", "list", "analyst", "--json")).json["snapshots"]
    assert [one["id"] for one in listed][1:] == [unnamed, undo]
    assert "before-restore" in (await cli("snapshot", "list", "analyst")).out
    assert (await cli("fork", "analyst", "b2", "--snapshot", "before")).out == "b2 is awake.\n"
    refused = await cli("snapshot", "delete", "analyst", "before")
    assert (refused.code, "--yes" in refused.err) == (2, True)
    assert (await cli("snapshot", "delete", "analyst", "before", "--yes")).code == 0
    gone = await cli("snapshot", "restore", "analyst", "before")
    assert (gone.code, "tenure snapshot list analyst" in gone.err) == (3, True)


async def test_delete_without_yes_needs_somebody_to_confirm(api: Api, cli: Cli) -> None:
    done = await cli("agent", "delete", "analyst", stdin=b"y\n")
    assert done.code == 2
    assert "--yes" in done.err
    assert [office.name for office in await api.offices.list()] == ["analyst"]


async def test_sql_prints_a_table_csv_or_json(cli: Cli) -> None:
    assert (await cli("sql", "analyst", "select 41")).out.split() == ["?column?", "41"]
    rows = list(csv.reader(io.StringIO((await cli("sql", "analyst", "select 41", "--csv")).out)))
    assert rows == [["?column?"], ["41"]]
    assert (await cli("sql", "analyst", "select 41", "--json")).json["rows"] == [[41]]
    refused = await cli("sql", "analyst", "selec 1")
    assert refused.code == 1
    assert "syntax error" in refused.err


async def test_sql_without_a_statement_is_psql(api: Api, cli: Cli) -> None:
    done = await cli("sql", "analyst", stdin=b"select 1;")
    assert done.code == 127  # the fake office has no psql
    assert done.err == "psql: command not found\n"


async def test_objects_are_put_listed_got_and_deleted_byte_for_byte(cli: Cli, tmp_path: Path) -> None:
    source, copied = tmp_path / "chart.png", tmp_path / "copy.png"
    source.write_bytes(EVERY_BYTE * 1000)
    assert (await cli("objects", "put", "analyst", str(source), "reports/charts/")).code == 0
    assert (await cli("objects", "put", "analyst", "-", "reports/in.bin", stdin=EVERY_BYTE)).code == 0
    listed = (await cli("objects", "list", "analyst", "reports/", "--json")).json["objects"]
    assert [(item["name"], item["content_type"]) for item in listed] == [
        ("charts/chart.png", "image/png"),
        ("in.bin", "application/octet-stream"),
    ]
    assert (await cli("objects", "get", "analyst", "reports/charts/chart.png", str(copied))).code == 0
    assert copied.read_bytes() == source.read_bytes()
    assert (await cli("objects", "get", "analyst", "reports/in.bin")).stdout == EVERY_BYTE
    assert (await cli("objects", "delete", "analyst", "reports/in.bin")).code == 0
    assert (await cli("objects", "get", "analyst", "reports/in.bin", str(copied))).code == 3
    assert copied.read_bytes() == source.read_bytes()


async def test_cp_copies_trees_in_and_out(api: Api, cli: Cli, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "bytes").write_bytes(EVERY_BYTE)
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("run.sh")
    assert (await cli("cp", str(tree), "analyst:renamed")).code == 0
    assert (api.directory / "files" / "renamed" / "sub" / "bytes").read_bytes() == EVERY_BYTE
    done = await cli("cp", "analyst:renamed", str(tmp_path / "back"), "--json")
    assert done.json["target"] == str(tmp_path / "back")
    back = tmp_path / "back"
    assert (back / "sub" / "bytes").read_bytes() == EVERY_BYTE
    assert (back / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (back / "link").readlink() == Path("run.sh")
    into = await cli("cp", "analyst:renamed/run.sh", str(tmp_path))
    assert (into.code, into.stdout, into.stderr) == (0, b"", b"")
    assert (tmp_path / "run.sh").read_text() == "#!/bin/sh\n"


async def test_logs_are_shown(api: Api, cli: Cli) -> None:
    assert (await cli("logs", "analyst")).out == "created\n"
    assert (await cli("logs", "analyst", "--json")).json == {"line": "created"}
    (api.directory / "logs").mkdir()
    (api.directory / "logs" / "server.log").write_text("one\ntwo\n")
    assert (await cli("logs", "--server", "-n", "1")).out == "two\n"


async def test_the_inbox_lists_what_is_new_and_reading_marks_it(api: Api, cli: Cli) -> None:
    left = await api.inbox.create(agent="analyst", subject="Done", body="3 days\nare odd", run_id="run_1")
    assert "Done" in (await cli("inbox")).out
    assert (await cli("inbox", "--json")).json["messages"][0]["id"] == left.id
    read = await cli("inbox", "read", left.id)
    assert "3 days\nare odd" in read.out
    assert (await cli("inbox", "--json")).json == {"messages": []}
    assert (await cli("--json", "inbox", "--all")).json["messages"][0]["read_at"]
    assert (await cli("inbox", "--json", "read", left.id)).json["subject"] == "Done"


# --- questions and costs -------------------------------------------------------------------------------------------------
@pytest.fixture
async def asking(api: Api) -> str:
    """A run."""
    run = await api.runs.create(agent="analyst", goal="g", playbook=PLAYBOOK, playbook_name=None, inputs={})
    return run.id


async def test_questions_are_shown_with_all_that_is_needed_to_answer(api: Api, cli: Cli, asking: str) -> None:
    assert (await cli("questions")).out == ""
    colour = api.runs.ask(asking, "Which colour?", options=["red", "blue"], evidence="the walls")
    leave = api.runs.ask(asking, "May it?", approval=True, to="ana")
    shown = (await cli("questions", "analyst")).out
    for part in (colour.id, "Which colour?", "one of: red, blue", "the walls", leave.id, "for ana"):
        assert part in shown
    assert [one["id"] for one in (await cli("questions", "--json")).json["questions"]] == [colour.id, leave.id]
    assert (await cli("questions", "other", "--json")).json == {"questions": []}


async def test_an_answer_is_taken_once_and_the_second_is_told_who_was_first(api: Api, cli: Cli, asking: str) -> None:
    colour, leave = api.runs.ask(asking, "Which colour?"), api.runs.ask(asking, "May it?", approval=True)
    assert (await cli("answer", colour.id, "dark blue")).out == f"{asking} is queued.\n"
    late = await cli("answer", colour.id, "red")
    assert late.code == errors.Conflict.exit_code
    assert "answered already, by owner" in late.err
    assert (await cli("answer", leave.id, "--no", "not today", "--json")).json["id"] == asking
    answers = [event.data["answer"] for event in await api.runs.events(asking) if event.kind == "question_answered"]
    assert answers == ["dark blue", "no, not today"]


async def test_a_run_stands_for_its_only_question(api: Api, cli: Cli, asking: str) -> None:
    first, second = api.runs.ask(asking, "First?"), api.runs.ask(asking, "Second?")
    several = await cli("answer", asking, "yes")
    assert several.code == errors.InvalidArgument.exit_code
    assert second.id in several.err
    await cli("answer", first.id, "yes")
    assert (await cli("answer", asking, "--yes")).code == 0
    assert "no open question" in (await cli("answer", asking, "--yes")).err


async def test_an_answer_that_is_missing_is_asked_for_at_a_terminal_only(api: Api, cli: Cli, asking: str) -> None:
    asked = api.runs.ask(asking, "Which colour?", evidence="the walls")
    refused = await cli("answer", asked.id)
    assert refused.code == errors.InvalidArgument.exit_code
    assert "The answer is missing" in refused.err
    assert (await cli("answer", asked.id, "text", "--yes")).code == errors.InvalidArgument.exit_code
    ours, theirs = pty.openpty()
    process = await cli.start("answer", asked.id, stdin=theirs)
    os.close(theirs)
    assert process.stdout is not None
    assert process.stderr is not None
    shown = await asyncio.wait_for(process.stderr.readuntil(b"Answer"), PATIENCE_S)
    assert b"Which colour?" in shown
    assert b"the walls" in shown
    os.write(ours, b"blue\n")
    assert await asyncio.wait_for(process.stdout.read(), PATIENCE_S) == f"{asking} is queued.\n".encode()
    assert await process.wait() == 0
    os.close(ours)


async def test_costs_are_summed_by_what_was_asked_for(cli: Cli) -> None:
    shown = (await cli("costs", "analyst", "--by", "agent")).out.split()
    assert shown == [
        "AGENT",
        "REQUESTS",
        "IN",
        "OUT",
        "USD",
        "TOOK",
        "analyst",
        "2",
        "1,200",
        "80",
        "0.0125",
        "0.0",
        "s",
    ]
    assert (await cli("costs", "--by", "model", "--json")).json["costs"][0]["model"] == "test:one"
    assert (await cli("costs", "--by", "colour")).code == errors.InvalidArgument.exit_code


# --- runs ----------------------------------------------------------------------------------------------------------------
@pytest.fixture
def playbook(tmp_path: Path) -> str:
    path = tmp_path / "plan.yaml"
    path.write_text(f"name: plan\n{PLAYBOOK}")
    return str(path)


async def test_run_prints_the_id_and_runs_show_has_state_and_steps(api: Api, cli: Cli, playbook: str) -> None:
    run_id = (await cli("run", "analyst", "find them", "--playbook", playbook)).out.strip()
    shown = (await cli("runs", "show", run_id, "--json")).json
    assert (shown["state"], shown["steps"]) == ("queued", [])
    assert run_id in (await cli("runs", "list", "--agent", "analyst")).out
    assert (await cli("runs", "list", "--state", "parked", "--json")).json == {"runs": []}
    assert (await cli("runs", "cancel", run_id)).out == f"{run_id} is cancelled.\n"
    assert (await cli("runs", "cancel", run_id)).code == 4
    api.runs.finish(run_id, wire.RunState.PARKED)
    assert (await cli("runs", "resume", run_id, "--answer", "yes")).out == f"{run_id} is queued.\n"


async def test_runs_fork_makes_an_agent_that_goes_on_from_a_step(api: Api, cli: Cli, playbook: str) -> None:
    run_id = (await cli("run", "analyst", "find them", "--playbook", playbook)).out.strip()
    taken = (await cli("snapshot", "create", "analyst", "--json")).json["id"]
    api.runs.keep(run_id, "load", taken)
    forked = await cli("runs", "fork", run_id, "--at", "load", "second", "--playbook", playbook, "--input", "days=3")
    assert forked.code == 0
    shown = (await cli("runs", "show", forked.out.strip(), "--json")).json
    assert (shown["agent"], shown["origin"]["run"], shown["origin"]["step"]) == ("second", run_id, "load")
    assert f"forked of {run_id}, after load ({taken})" in (await cli("runs", "show", forked.out.strip())).out
    assert "second" in (await cli("agent", "list")).out
    missing = await cli("runs", "fork", run_id, "--at", "other", "third")
    assert (missing.code, "third" in (await cli("agent", "list")).out) == (3, False)
    assert (await cli("runs", "fork", run_id, "--at", "load", "--before", "third")).code == 3
    assert (await cli("runs", "fork", run_id, "--at", "load", "Third!")).code == 2
    assert (await cli("runs", "fork", run_id, "--at", "load", "third", "--input", "days=3")).code == 2


async def test_a_malformed_playbook_is_refused_with_its_line_before_any_server_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: plan\nsteps:\n  - id: one\n    rum: echo\n")
    done = await Cli(tmp_path)("run", "analyst", "goal", "--playbook", str(path))
    assert done.code == 2
    assert "broken.yaml:" in done.err
    assert "rum" in done.err


@pytest.mark.parametrize(
    ("state", "code"),
    [("succeeded", 0), ("failed", 10), ("parked", 11), ("cancelled", 12)],
)
async def test_a_followed_run_ends_with_the_code_of_its_state(
    api: Api, cli: Cli, playbook: str, state: str, code: int
) -> None:
    process = await cli.start("run", "analyst", "find them", "-p", playbook, "--follow")
    async with asyncio.timeout(PATIENCE_S):
        while not (runs := await api.runs.list()):  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)
    api.runs.finish(runs[0].id, wire.RunState(state))
    out, err = await process.communicate()
    assert (process.returncode, err) == (code, b"")
    assert f"{runs[0].id}  {state}" in out.decode()
    assert (await cli("runs", "follow", runs[0].id)).code == code


async def test_follow_with_json_prints_the_journal_and_then_the_run(api: Api, cli: Cli, playbook: str) -> None:
    run_id = (await cli("run", "analyst", "find them", "--playbook", playbook, "--json")).json["id"]
    api.runs.finish(run_id, wire.RunState.SUCCEEDED)
    done = await cli("runs", "follow", run_id, "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line.get("kind") for line in lines[:-1]] == ["run_created", "run_succeeded"]
    assert lines[-1]["run"]["state"] == "succeeded"


async def think_aloud(api: Api, run_id: str, output: str) -> None:
    """As if a brain had called a tool for the step `one`, and it had failed with this output."""
    call = {"id": "c", "tool": "shell", "arguments": {"script": "make test"}}
    usage = {"requests": 1, "input_tokens": 900, "output_tokens": 10, "cost_usd": 0.002}
    thought = {"decision": {"kind": "call", "calls": [call]}, "text": "First the tests.", "model": "m", "usage": usage}
    at = {"step": "one", "attempt": 1}
    api.runs.write(run_id, "step_started", **at, key="k")
    api.runs.write(run_id, "thinking", **at, turn=0, thought=thought, duration_s=1.0)
    api.runs.write(run_id, "call_done", **at, turn=0, index=0, result={"ok": False, "output": output})


async def test_runs_show_tells_the_story_and_all_of_it_where_that_is_wanted(api: Api, cli: Cli, playbook: str) -> None:
    run_id = (await cli("run", "analyst", "find them", "--playbook", playbook)).out.strip()
    await think_aloud(api, run_id, "\n".join(f"failure {n}" for n in range(30)))
    shown = await cli("runs", "show", run_id, env={"COLUMNS": "80"})
    for part in (
        "one  1 thought, 910 tokens, $0.0020, 1.0 s",
        "│ First the tests.",
        "│ → shell make test",
        "shell: failed",
    ):
        assert part in shown.out
    assert max(len(line) for line in shown.out.splitlines()) <= 80
    assert ("failure 3" in shown.out, "failure 29" in shown.out) == (True, False)
    for words in (("--full",), ("--step", "one")):
        assert "failure 29" in (await cli("runs", "show", run_id, *words)).out
    for words in ((), ("--step", "one")):
        story = (await cli("runs", "show", run_id, "--json", *words)).json["story"]
        assert [entry["kind"] for entry in story][-2:] == ["thinking", "call_done"]
        assert story[-1]["details"].endswith("failure 29")
    assert (await cli("runs", "show", run_id, "--step", "none")).code == errors.NotFound.exit_code


async def test_a_followed_run_tells_thoughts_and_calls_as_they_come(api: Api, cli: Cli, playbook: str) -> None:
    run_id = (await cli("run", "analyst", "find them", "--playbook", playbook)).out.strip()
    process = await cli.start("runs", "follow", run_id)
    assert process.stdout is not None
    await think_aloud(api, run_id, "it broke")
    seen = await asyncio.wait_for(process.stdout.readuntil(b"it broke"), PATIENCE_S)
    assert b"one: thought 1 (m, 900+10 tokens, $0.0020, 1.0 s): uses shell" in seen
    assert b"shell make test" in seen
    api.runs.finish(run_id, wire.RunState.SUCCEEDED)
    await process.communicate()
    assert process.returncode == 0


def _run(*steps: wire.RunStep, **fields: object) -> wire.Run:
    base = {"id": "run_1", "agent": "a", "goal": "g", "state": "running", "created_at": NOW, "started_at": NOW}
    return wire.Run.model_validate({**base, "steps": list(steps), **fields})


NOW = datetime(2026, 1, 1, tzinfo=UTC)
times = st.none() | st.integers(0, 10_000).map(lambda s: NOW + timedelta(seconds=s))
steps = st.builds(
    wire.RunStep,
    id=st.text(st.characters(categories=["L"]), min_size=1, max_size=50),
    state=st.sampled_from(wire.StepState),
    attempts=st.integers(0, 9),
    rungs=st.lists(st.integers(0, 8), max_size=5),
    started_at=times,
    finished_at=times,
    error=st.none() | st.text(max_size=300),
)


@given(st.lists(steps, max_size=12), st.integers(1, 300), times)
def test_bars_stay_within_the_picture_and_every_begun_step_has_one(
    found: list[wire.RunStep], width: int, now: datetime | None
) -> None:
    run = _run(*found)
    for step, bar in zip(run.steps, bars(run, width, now or NOW), strict=True):
        assert (bar.length > 0) == (step.started_at is not None)
        assert 0 <= bar.start <= bar.start + bar.length <= width
    assert all("\x1b" not in line for line in render(run, width=width, now=now or NOW))


def test_the_timeline_tells_attempts_rungs_and_durations() -> None:
    step = wire.RunStep(
        id="score[2014]",
        state=wire.StepState.SUCCEEDED,
        attempts=3,
        rungs=[0, 4],
        started_at=NOW,
        finished_at=NOW + timedelta(seconds=65),
        duration_s=65,
    )
    text = "\n".join(render(_run(step, state="parked", question="Go on?"), width=100, now=NOW))
    for part in ("score[2014]", "3 attempts", "rungs 0→4", "65 s", "parked", "Go on?", "tenure runs resume run_1"):
        assert part in text


def test_the_timeline_tells_snapshots_and_origin() -> None:
    taken = [
        wire.StepSnapshot(id=f"snap_{number}", before=before, verified=True, seq=number)
        for number, before in enumerate([True, False, False])
    ]
    step = wire.RunStep(id="load", state=wire.StepState.SUCCEEDED, started_at=NOW, finished_at=NOW, snapshots=taken)
    origin = wire.RunOrigin(run="run_0", step="load", before=True, snapshot="snap_9", seq=4)
    lines = render(_run(step).model_copy(update={"origin": origin}), width=100, now=NOW)
    assert "forked of run_0, before load (snap_9)" in lines
    assert any(line.endswith("◇ snap_0 ◆ snap_2") for line in lines), "not the newest"
    assert render(_run(step), width=100, now=NOW, ascii_only=True)[-1].endswith("o snap_0 * snap_2")
    back = _event("office_restored", 5, snapshot="snap_0", before="snap_7", to_seq=3, undone=["load", "keep"])
    assert lines_of(back, {}) == [
        "  score[2014]: the office is as it was at snap_0 (before: snap_7); again: load, keep"
    ]
    assert lines_of(_event("snapshot_taken", 5, snapshot="snap_0", before=True), {}) == [
        "  score[2014]: snapshot snap_0, before it"
    ]
    assert lines_of(_event("forked", 5, run="run_0", step="load", before=False), {}) == [
        "  forked of run_0, after load"
    ]


def _event(kind: str, seconds: int, **data: object) -> wire.RunEvent:
    return wire.RunEvent(seq=1, kind=kind, at=NOW + timedelta(seconds=seconds), step="score[2014]", data=data)


def test_a_followed_run_says_why_a_step_failed_and_what_is_done_about_it() -> None:
    failure = {
        "kind": "command",
        "message": "The command exited with 3.",
        "evidence": "".join(f"{i}\n" for i in range(99)),
    }
    events = [
        _event("step_started", 0, attempt=1),
        _event("step_failed", 5, attempt=1, failure=failure),
        _event("rung_entered", 6, rung=4),
        _event("step_started", 7, attempt=2),
        _event("step_succeeded", 72, attempt=2, result={}),
    ]
    began = {"score[2014]": NOW + timedelta(seconds=7)}
    lines = [
        line
        for event in events
        for line in lines_of(event, {"score[2014]": NOW} if event.at < began["score[2014]"] else began)
    ]
    assert lines == [
        "  score[2014]: running",
        "  score[2014]: failed after 5.0 s: The command exited with 3.",
        "    | …",
        *[f"    | {i}" for i in range(91, 99)],
        "  score[2014]: rung 4 (reconnect)",
        "  score[2014]: running, attempt 2",
        "  score[2014]: succeeded after 65 s, attempt 2",
    ]


# --- the command as a whole --------------------------------------------------------------------------------------------
def _leaves() -> list[tuple[str, object]]:
    return [(line, found) for line, found in reference.commands() if not hasattr(found, "commands")]


def test_every_command_takes_json_and_home() -> None:
    assert len(_leaves()) > 25
    for line, found in _leaves():
        options = {option for parameter in found.params for option in parameter.opts}  # type: ignore[attr-defined]
        assert {"--json", "--home"} <= options, line


def test_every_command_and_option_has_a_help_text() -> None:
    for line, found in _leaves():
        assert found.help, line  # type: ignore[attr-defined]
        for parameter in found.params:  # type: ignore[attr-defined]
            if parameter.param_type_name == "option":
                assert parameter.help, f"{line} {parameter.name}"


def test_the_documents_are_those_that_the_code_writes() -> None:
    how = "run `python -m tenure.cli.reference`"
    assert (DOCS / "cli.md").read_text() == reference.cli_markdown(), how
    assert (DOCS / "exit-codes.md").read_text() == reference.exit_codes_markdown(), how


def test_every_error_has_a_documented_exit_code() -> None:
    for code, cls in errors.by_code().items():
        if cls.__module__ != errors.__name__:
            continue  # a fake's
        assert cls.exit_code in MEANINGS, code
        assert f"`{code}`" in reference.exit_codes_markdown()


async def test_nothing_but_the_answer_is_printed_into_a_pipe(cli: Cli) -> None:
    for words in (("agent", "list"), ("agent", "show", "analyst"), ("objects", "list", "analyst"), ("inbox",)):
        done = await cli(*words, env={"TERM": "xterm-256color"})
        assert (done.code, done.stderr) == (0, b""), words
        assert b"\x1b" not in done.stdout


@pytest.mark.parametrize("no_colour", [False, True], ids=["colour", "NO_COLOR"])
async def test_colour_is_for_terminals_that_want_it(cli: Cli, no_colour: bool) -> None:
    ours, theirs = pty.openpty()
    env = {"TERM": "xterm-256color", **({"NO_COLOR": "1"} if no_colour else {})}
    process = await cli.start("agent", "list", stdout=theirs, env=env)
    await process.wait()
    assert (b"\x1b[1m" in os.read(ours, 10_000)) is not no_colour
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("words", "unwanted"),
    [
        (
            ["exec", "analyst", "--", "ls"],
            {"httpx", "tenure.wire", "fastapi", "sqlalchemy", "rich", "yaml", "asyncssh"},
        ),
        (["agent", "list"], {"fastapi", "sqlalchemy", "rich", "yaml", "asyncssh", "pygments"}),
    ],
)
def test_a_command_loads_only_what_it_needs(tmp_path: Path, words: list[str], unwanted: set[str]) -> None:
    code = "import sys, tenure.cli; tenure.cli.main(sys.argv[1:]); print(*sys.modules)"
    env = Cli(tmp_path).environment()
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "tenure.client.endpoint" in loaded
    assert not loaded & unwanted


async def test_help_and_version_need_no_server(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    assert (await cli("--version")).out.startswith("tenure ")
    assert "In an office" in (await cli()).out
    for line in ("exec", "agent create", "runs"):
        done = await cli(*line.split(), "--help")
        assert (done.code, done.stderr) == (0, b""), line


# --- shared databases ----------------------------------------------------------------------------------------------------
async def test_shared_databases_are_granted_and_restored_on_the_command_line(cli: Cli) -> None:
    assert (await cli("db", "create", "sales", "--connections", "2")).code == 0
    made = await cli("db", "show", "sales", "--json")
    assert (made.json["host"], made.json["limits"]["connections"]) == ("sales.db", 2)
    granted = await cli(
        *("db", "grant", "sales", "analyst", "read", "--table", "orders:region = 'north'", "--table", "items"),
        *("--for", "8h", "--json"),
    )
    assert granted.json["tables"] == {"orders": {"rows": "region = 'north'"}, "items": {"rows": None}}
    assert granted.json["expires_at"]
    assert "orders where region = 'north'" in (await cli("db", "grants", "sales")).out
    for wrong in (
        ("grant", "sales", "analyst", "own"),
        ("restore", "sales"),
        ("restore", "sales", "--to", "now", "--as", "x"),
    ):
        assert (await cli("db", *wrong)).code == 2
    assert (await cli("db", "snapshot", "sales", "--name", "first")).out.strip() == "first"
    assert "To undo" in (await cli("db", "restore", "sales", "first")).out
    assert (await cli("db", "backup", "sales", "--to", "/backups", "--every", "1h")).code == 0
    done = await cli("db", "restore", "sales", "--to", "2026-01-01T00:00:00Z", "--as", "then", "--json")
    assert done.json["origin"] == "sales@2026-01-01T00:00:00Z"
    assert (await cli("db", "revoke", "sales", "analyst")).code == 0
    assert (await cli("db", "delete", "sales")).code == 2, "nobody is there to confirm"
    assert (await cli("db", "delete", "sales", "--yes")).code == 0
    assert [one["name"] for one in (await cli("db", "list", "--json")).json["databases"]] == ["then"]
