"""The conformance kit of the `Hands` contract: every way to act in an office passes `check_hands`.

    async def test_my_hands():
        await check_hands(MyHands(), agent="analyst")

The office must run `sh` scripts and have an empty database; the kit leaves files named `conformance-*` in its home,
tables named `conformance_*`, and objects in the bucket `conformance`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenure.errors import AlreadyExists, DatabaseError, NotFound, TenureError, TooLarge, UsageError
from tenure.wire import CHECKPOINT_BYTES_MAX
from tenure.work.hands import Command, CommandState, CommandStatus, Hands, OpenProgram, When

ENDS_S = 30.0
"""More than any of the kit's commands takes; only a driver that hangs comes near."""
SQL_PIECES = 2

T = TypeVar("T")


async def check_hands(hands: Hands, agent: str, *, disruptive: bool = True) -> list[str]:
    """Raises `AssertionError`, naming the contract, for the first one that `hands` breaks; returns the names of all that held.
    `disruptive` also restarts the sandbox of `agent`."""
    held: list[str] = []
    for check in [*CHECKS, *(DISRUPTIVE_CHECKS if disruptive else ())]:
        try:
            await check(hands, agent)
        except AssertionError as error:
            raise AssertionError(f"{check.__name__}: {check.__doc__}\n{error}") from error
        held.append(check.__name__)
    return held


def _key() -> str:
    return f"conformance.{secrets.token_hex(6)}"


async def _end(hands: Hands, agent: str, key: str) -> CommandStatus:
    async with asyncio.timeout(ENDS_S):
        while (status := await hands.command_status(agent, key, wait_s=5)).state is CommandState.RUNNING:
            pass
    return status


async def _run(hands: Hands, agent: str, script: str, **options: object) -> CommandStatus:
    key = _key()
    await hands.start_command(agent, key, Command(script, **options))  # pyright: ignore[reportArgumentType]
    return await _end(hands, agent, key)


def _beating(file: str) -> str:
    """A script that writes into the file for as long as it lives."""
    return f"(while echo >> {file}; do sleep 0.1; done)"


async def _is_still(hands: Hands, agent: str, file: str) -> bool:
    """Whether nobody writes into it any more."""
    status = await _run(hands, agent, f"touch {file}; wc -l < {file}; sleep 2; wc -l < {file}")
    before, after = status.output.split()
    return before == after


async def _raises(kind: type[TenureError], call: Awaitable[object]) -> None:
    try:
        await call
    except kind:
        return
    except TenureError as error:
        raise AssertionError(f"expected {kind.__name__}, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"expected {kind.__name__}, nothing was raised")


# --- commands ------------------------------------------------------------------------------------------------------------
async def c01_output_and_exit_code(hands: Hands, agent: str) -> None:
    """A command's stdout and stderr come together, with its exit code and its duration."""
    status = await _run(hands, agent, "echo out; echo err >&2; exit 7")
    assert (status.state, status.exit_code, status.timed_out) == (CommandState.EXITED, 7, False), status
    assert sorted(status.output.split()) == ["err", "out"], status
    assert status.output_bytes == len("out\nerr\n"), status
    assert status.duration_s is not None, status
    assert status.duration_s >= 0, status


async def c02_environment_and_directory(hands: Hands, agent: str) -> None:
    """A command has its `env`, a home, and starts there, or in `cwd`."""
    status = await _run(
        hands, agent, 'printf "%s\\n" "$GIVEN"; [ "$PWD" = "$HOME" ] && echo home', env={"GIVEN": "a 'b' $c"}
    )
    assert status.output.splitlines() == ["a 'b' $c", "home"], status
    status = await _run(hands, agent, "pwd", cwd="/usr")
    assert status.output.strip() == "/usr", status


async def c03_same_key_same_command(hands: Hands, agent: str) -> None:
    """Starting a known key starts nothing, while the command runs and after it ended."""
    key, mark = _key(), f"conformance-{secrets.token_hex(4)}"
    command = Command(f"echo once >> {mark}; sleep 0.5; wc -l < {mark}")
    first, second = await asyncio.gather(*(hands.start_command(agent, key, command) for _ in range(2)))
    assert CommandState.ABSENT not in (first.state, second.state), (first, second)
    status = await _end(hands, agent, key)
    assert status.output.strip() == "1", status
    again = await hands.start_command(agent, key, command)
    assert (again.state, again.exit_code, again.output) == (CommandState.EXITED, 0, status.output), again
    assert (await _run(hands, agent, f"wc -l < {mark}")).output.strip() == "1"


async def c04_unknown_key_is_absent(hands: Hands, agent: str) -> None:
    """A key that was never started is ABSENT; stopping and forgetting it are no errors."""
    key = _key()
    await hands.stop_command(agent, key)
    await hands.forget_command(agent, key)
    assert (await hands.command_status(agent, key)).state is CommandState.ABSENT


async def c05_status_waits_and_does_not(hands: Hands, agent: str) -> None:
    """`command_status` answers at once without `wait_s`, with RUNNING; with it, it answers when the command has ended."""
    key = _key()
    await hands.start_command(agent, key, Command("read line < <(sleep 1); echo done"))
    assert (await hands.command_status(agent, key)).state is CommandState.RUNNING
    status = await hands.command_status(agent, key, wait_s=25)
    assert (status.state, status.output.strip()) == (CommandState.EXITED, "done"), status


async def c06_timeout_ends_the_group(hands: Hands, agent: str) -> None:
    """After `timeout_s` the command and its children are ended, and it reports `timed_out`."""
    mark = f"conformance-{secrets.token_hex(4)}"
    status = await _run(hands, agent, f"{_beating(mark)} & sleep 600", timeout_s=0.5)
    assert (status.state, status.timed_out) == (CommandState.EXITED, True), status
    assert status.exit_code != 0, status
    assert await _is_still(hands, agent, mark), "a child outlived the timeout"


async def c07_stop(hands: Hands, agent: str) -> None:
    """`stop_command` ends a running command, which then has an exit code of a signal; a second stop does nothing."""
    key = _key()
    await hands.start_command(agent, key, Command("exec sleep 600"))
    await hands.stop_command(agent, key)
    status = await _end(hands, agent, key)
    assert (status.state, status.timed_out) == (CommandState.EXITED, False), status
    assert status.exit_code in (128 + 15, 128 + 9), status
    await hands.stop_command(agent, key)


async def c08_output_is_bounded(hands: Hands, agent: str) -> None:
    """Of much output the last part is kept, and all of it counted; bytes that are no text do no harm."""
    status = await _run(hands, agent, "head -c 3000000 /dev/zero | tr '\\0' 'x'; printf '\\377\\376 end'")
    assert status.exit_code == 0, status.exit_code
    assert status.output_bytes == 3_000_000 + 6, status.output_bytes
    assert len(status.output.encode()) <= 64 * 1024 + 16, len(status.output)
    assert status.output.endswith(" end"), status.output[-20:]


async def c09_forgotten_is_not_forgiven(hands: Hands, agent: str) -> None:
    """`forget_command` drops the output; the key stays known for good, so that a late worker cannot start it again."""
    key, mark = _key(), f"conformance-{secrets.token_hex(4)}"
    command = Command(f"echo once >> {mark}; exit 3")
    await hands.start_command(agent, key, command)
    await _end(hands, agent, key)
    await hands.forget_command(agent, key)
    status = await hands.start_command(agent, key, command)
    assert (status.state, status.exit_code, status.output) == (CommandState.EXITED, 3, ""), status
    await hands.forget_command(agent, key)
    assert (await _run(hands, agent, f"wc -l < {mark}")).output.strip() == "1"


async def c10_running_is_not_forgotten(hands: Hands, agent: str) -> None:
    """Forgetting a running command does nothing."""
    key = _key()
    await hands.start_command(agent, key, Command("sleep 1; echo kept"))
    await hands.forget_command(agent, key)
    assert (await _end(hands, agent, key)).output.strip() == "kept"


# --- database ------------------------------------------------------------------------------------------------------------
async def c20_sql_result(hands: Hands, agent: str) -> None:
    """`sql` gives columns and JSON-ready rows, at most `rows_max` of them."""
    found = await hands.sql(agent, "select 1 as a, 'x' as b union all select 2, null order by a")
    assert (found.columns, found.rows) == (["a", "b"], [[1, "x"], [2, None]]), found
    assert (found.truncated, found.repeated) == (False, False), found
    found = await hands.sql(agent, "select 1 as a union all select 2 order by a", rows_max=1)
    assert (found.rows, found.truncated) == ([[1]], True), found


async def c21_sql_once_per_key(hands: Hands, agent: str) -> None:
    """A statement with a key takes effect once, also when two calls meet; the second gets the first one's result."""
    table, key = f"conformance_{secrets.token_hex(4)}", _key()
    await hands.sql(agent, f"create table {table} (n integer)")
    insert = f"insert into {table} values (1); select count(*) as n from {table}"
    results = await asyncio.gather(*(hands.sql(agent, insert, key=key) for _ in range(SQL_PIECES)))
    results.append(await hands.sql(agent, insert, key=key))
    assert sorted(result.repeated for result in results) == [False, True, True], results
    assert all(result.rows == [[1]] for result in results), results
    assert (await hands.sql(agent, f"select count(*) from {table}")).rows == [[1]]


async def c22_sql_all_or_nothing(hands: Hands, agent: str) -> None:
    """Statements run in one transaction; one that PostgreSQL refuses undoes all, raises `DatabaseError`, and leaves its key
    unused."""
    table, key = f"conformance_{secrets.token_hex(4)}", _key()
    await hands.sql(agent, f"create table {table} (n integer)")
    broken = f"insert into {table} values (1); insert into {table}_missing values (1)"
    await _raises(DatabaseError, hands.sql(agent, broken, key=key))
    assert (await hands.sql(agent, f"select count(*) from {table}")).rows == [[0]]
    mended = await hands.sql(agent, f"insert into {table} values (1)", key=key)
    assert mended.repeated is False, mended


async def c24_questions_about_data(hands: Hands, agent: str) -> None:
    """`ask_data` describes, samples and profiles a table, keeps a query's rows by name, once per key, and searches text; what is
    not there raises `NotFound`, what is no question `UsageError`."""
    table, result = f"conformance_{secrets.token_hex(4)}", f"kept_{secrets.token_hex(4)}"
    await hands.sql(agent, f"create table {table} (id integer primary key, words text)")
    await hands.sql(agent, f"insert into {table} values (1, 'a late invoice'), (2, 'a red apple'), (3, null)")
    found = await hands.ask_data(agent, "describe", {"table": table})
    (described,) = found["tables"]
    assert [column["name"] for column in described["columns"]] == ["id", "words"], described
    assert described["primary_key"] == ["id"], described
    assert len((await hands.ask_data(agent, "sample", {"table": table, "rows": 2}))["rows"]) == 2
    profiled = await hands.ask_data(agent, "profile", {"table": table})
    assert [(column["nulls"], column["distinct"]) for column in profiled["columns"]] == [(0, 3), (1, 2)], profiled
    key = _key()
    asked = {"name": result, "query": f"select count(*) as n from {table}"}
    for _ in range(2):
        assert (await hands.ask_data(agent, "save_result", asked, key=key))["name"] == result
        await hands.sql(agent, f"delete from {table} where id = 3")
    assert (await hands.ask_data(agent, "read_result", {"name": result}))["rows"] == [[3]]
    assert result in [one["name"] for one in (await hands.ask_data(agent, "list_results", {}))["results"]]
    await hands.ask_data(agent, "create_index", {"name": table, "table": table, "columns": ["words"]})
    searched = {"query": "invoice", "index": table, "limit": 1}
    assert [hit["text"] for hit in (await hands.ask_data(agent, "search", searched))["hits"]] == ["a late invoice"]
    await _raises(NotFound, hands.ask_data(agent, "describe", {"table": f"{table}_missing"}))
    await _raises(NotFound, hands.ask_data(agent, "read_result", {"name": f"{result}_missing"}))
    await _raises(UsageError, hands.ask_data(agent, "no such question", {}))


# --- objects, messages, files ----------------------------------------------------------------------------------------------
async def c30_put_object(hands: Hands, agent: str) -> None:
    """`put_object` copies a file, replaces one of the same name, and raises `NotFound` without the file."""
    name = f"conformance-{secrets.token_hex(4)}"
    for content in ("one", "three"):
        await _run(hands, agent, f"printf {content} > {name}")
        stored = await hands.put_object(agent, name, "conformance", name, key=_key())
        assert (stored["bucket"], stored["name"], stored["size_bytes"]) == ("conformance", name, len(content)), stored
        assert len(stored["sha256"]) == 64, stored
    await _raises(NotFound, hands.put_object(agent, f"{name}.missing", "conformance", name, key=_key()))


async def c31_notify_once(hands: Hands, agent: str) -> None:
    """`notify` may be repeated with its key."""
    key = _key()
    await hands.notify(agent, "conformance", "body", key=key)
    await hands.notify(agent, "conformance", "body", key=key)


async def c32_read_file(hands: Hands, agent: str) -> None:
    """`read_file` gives the first bytes, paths being relative to the home, and None when there is no file."""
    name = f"conformance-{secrets.token_hex(4)}"
    await _run(hands, agent, f"printf 0123456789 > {name}; touch {name}.empty")
    assert await hands.read_file(agent, name) == b"0123456789"
    assert await hands.read_file(agent, name, bytes_max=4) == b"0123"
    assert await hands.read_file(agent, f"{name}.empty") == b""
    assert await hands.read_file(agent, f"{name}.missing") is None


async def c23_sql_that_only_reads(hands: Hands, agent: str) -> None:
    """With `read_only` a query is answered, and what would write raises `DatabaseError` and changes nothing."""
    table = f"conformance_{secrets.token_hex(4)}"
    await hands.sql(agent, f"create table {table} (n integer); insert into {table} values (7)")
    assert (await hands.sql(agent, f"select n from {table}", read_only=True)).rows == [[7]]
    await _raises(DatabaseError, hands.sql(agent, f"delete from {table}", read_only=True))
    assert (await hands.sql(agent, f"select count(*) from {table}")).rows == [[1]]


async def c34_objects(hands: Hands, agent: str) -> None:
    """Objects are written, read up to a length, listed by bucket and prefix, copied into a file, and deleted; a missing one is
    None, raises `NotFound` where it is to be copied, and is no error where it is to be deleted."""
    name = f"conformance-{secrets.token_hex(4)}"
    for data in (b"old", b"\x000123456789\xff"):
        stored = await hands.write_object(agent, "conformance", f"{name}/a", data, key=_key())
        assert (stored["name"], stored["size_bytes"]) == (f"{name}/a", len(data)), stored
    assert await hands.read_object(agent, "conformance", f"{name}/a") == data
    assert await hands.read_object(agent, "conformance", f"{name}/a", bytes_max=3) == data[:3]
    assert await hands.read_object(agent, "conformance", f"{name}/b") is None
    await hands.write_object(agent, "conformance", f"{name}/c", b"", key=_key())
    listed = await hands.list_objects(agent, "conformance", f"{name}/")
    assert [(one["name"], one["size_bytes"]) for one in listed] == [(f"{name}/a", len(data)), (f"{name}/c", 0)], listed
    assert len(await hands.list_objects(agent, "conformance", f"{name}/", limit=1)) == 1
    assert f"{name}/a" in [one["name"] for one in await hands.list_objects(agent)]
    for _ in range(2):
        assert await hands.object_to_file(agent, "conformance", f"{name}/a", name, key=_key()) == len(data)
    assert await hands.read_file(agent, name) == data
    await _raises(NotFound, hands.object_to_file(agent, "conformance", f"{name}/b", name, key=_key()))
    await _raises(NotFound, hands.object_to_file(agent, "conformance", f"{name}/a", f"{name}.no/a", key=_key()))
    deleted = [await hands.delete_object(agent, "conformance", f"{name}/a", key=_key()) for _ in range(2)]
    assert deleted == [True, False], deleted
    assert await hands.read_object(agent, "conformance", f"{name}/a") is None


async def c35_named_snapshot_once(hands: Hands, agent: str) -> None:
    """A snapshot is kept under a name once per key; another one may not have the name."""
    key, name = _key(), f"conformance-{secrets.token_hex(4)}"
    first = await hands.keep_snapshot(agent, name, key=key)
    assert await hands.keep_snapshot(agent, name, key=key) == first
    await _raises(AlreadyExists, hands.keep_snapshot(agent, name, key=_key()))


async def c36_run_once(hands: Hands, agent: str) -> None:
    """A run is started once per key, can be looked at, and is cancelled, which may be asked again."""
    key = _key()
    first, again = [await hands.start_run(agent, "conformance", key=key) for _ in range(2)]
    assert (first.id, first.agent, first.goal, first.over) == (again.id, agent, "conformance", False), (first, again)
    child = await hands.start_run(agent, "conformance", key=_key(), parent=first.id)
    assert child.id != first.id, child
    assert (await hands.run_status(child.id)).parent == first.id
    for run in (child, first):
        await hands.cancel_run(run.id)
        async with asyncio.timeout(ENDS_S):
            while not (await hands.cancel_run(run.id)).over:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    await _raises(NotFound, hands.run_status("run_000000000000"))


async def c37_schedule_once(hands: Hands, agent: str) -> None:
    """A schedule is made once per key, is listed, and is deleted, which may be asked again."""
    name, key, when = f"conformance-{secrets.token_hex(4)}", _key(), When(every_s=86_400)
    first, again = [await hands.create_schedule(agent, name, "conformance", when, key=key) for _ in range(2)]
    assert (first.id, first.name, first.goal, first.when) == (again.id, name, "conformance", "every 1d"), (first, again)
    assert name in [one.name for one in await hands.list_schedules(agent)]
    await _raises(AlreadyExists, hands.create_schedule(agent, name, "conformance", when, key=_key()))
    await _raises(UsageError, hands.create_schedule(agent, name + "x", "g", When(every_s=60), key=_key()))
    key = _key()
    assert await hands.delete_schedule(agent, name, key=key) is True
    assert await hands.delete_schedule(agent, name, key=key) is False
    assert name not in [one.name for one in await hands.list_schedules(agent)]


async def c40_unknown_agent(hands: Hands, agent: str) -> None:
    """Every call for an agent that does not exist raises `NotFound`; `probe` says no."""
    nobody = f"{agent[:20]}-{secrets.token_hex(4)}"
    await _raises(NotFound, hands.start_command(nobody, _key(), Command("true")))
    await _raises(NotFound, hands.command_status(nobody, _key()))
    await _raises(NotFound, hands.sql(nobody, "select 1"))
    await _raises(NotFound, hands.put_object(nobody, "a", "conformance", "a", key=_key()))
    await _raises(NotFound, hands.read_file(nobody, "a"))
    await _raises(NotFound, hands.notify(nobody, "subject", "body", key=_key()))
    await _raises(NotFound, hands.write_object(nobody, "conformance", "a", b"", key=_key()))
    await _raises(NotFound, hands.read_object(nobody, "conformance", "a"))
    await _raises(NotFound, hands.list_objects(nobody))
    await _raises(NotFound, hands.delete_object(nobody, "conformance", "a", key=_key()))
    await _raises(NotFound, hands.keep_snapshot(nobody, "conformance", key=_key()))
    await _raises(NotFound, hands.start_run(nobody, "goal", key=_key()))
    await _raises(NotFound, hands.restart(nobody))
    assert await hands.probe(nobody) is False


async def c33_snapshot_once(hands: Hands, agent: str) -> None:
    """A snapshot is taken once per key, however often it is asked for; commands go on."""
    key, command = _key(), _key()
    await hands.start_command(agent, command, Command("sleep 1; echo through"))
    asked = {"run_id": "run_conformance", "node": "step", "verified": True}
    first = await hands.take_snapshot(agent, key, before=False, seq=3, **asked)  # pyright: ignore[reportArgumentType]
    again = await hands.take_snapshot(agent, key, before=False, seq=9, **asked)  # pyright: ignore[reportArgumentType]
    assert first == again, (first, again)
    assert first.verified, first
    other = await hands.take_snapshot(agent, _key(), run_id="r", node="n", before=True, verified=False, seq=1)
    assert other.id != first.id, other
    assert not other.verified, other
    assert (await _end(hands, agent, command)).output.strip() == "through"


# --- programs ------------------------------------------------------------------------------------------------------------
def _tell(key: str, method: str, what: str, body: str = "") -> str:
    """A script by which a program of the office tells something under `key`; it prints the HTTP status."""
    data = f"-H 'content-type: application/json' -d '{body}'" if body else ""
    return f'curl -s -o /dev/null -w "%{{http_code}}" -X {method} {data} "$TENURE_URL/work/{key}/{what}"'


async def c60_signals(hands: Hands, agent: str) -> None:
    """What a program tells under an opened key is there; opening it again changes nothing."""
    key = _key()
    await hands.open_signals(agent, key, {"at": None})
    await hands.open_signals(agent, key, {"at": 2})
    assert (await hands.signals(agent, key)).checkpoint == {"at": None}
    told = [
        _tell(key, "POST", "heartbeat"),
        _tell(key, "POST", "heartbeat", '{"every_s": 7}'),
        _tell(key, "PUT", "checkpoint", '{"at": [3, "x"]}'),
        _tell(key, "POST", "progress", '{"text": "half"}'),
        _tell(key, "PUT", "usage", '{"input_tokens": 3, "cost_usd": 0.5}'),
        _tell(key, "POST", "ask", '{"text": "Which?", "options": ["a", "b"]}'),
    ]
    status = await _run(hands, agent, "; ".join(told))
    assert status.output == "204" * len(told), status.output
    found = await hands.signals(agent, key)
    assert (found.checkpoint, found.checkpoints) == ({"at": [3, "x"]}, 1), found
    assert (found.beats, found.heartbeats, found.heartbeat_s) == (6, 2, 7.0), found
    assert (found.progress, found.progresses) == ("half", 1), found
    assert found.usage == {"input_tokens": 3, "output_tokens": 0, "cost_usd": 0.5}, found
    assert found.question is not None, found
    assert (found.question["text"], found.question["options"]) == ("Which?", ["a", "b"]), found
    status = await _run(hands, agent, f'curl -s "$TENURE_URL/work/{key}/checkpoint"')
    assert status.output.replace(" ", "") == '{"at":[3,"x"]}', status.output


async def c61_signals_of_nobody(hands: Hands, agent: str) -> None:
    """A key that was not opened is unknown, to the program and to the worker; a checkpoint has its limit."""
    key = _key()
    assert (await _run(hands, agent, _tell(key, "POST", "heartbeat"))).output == "404"
    await _raises(NotFound, hands.signals(agent, key))
    await _raises(TooLarge, hands.open_signals(agent, key, "x" * CHECKPOINT_BYTES_MAX))
    await hands.open_signals(agent, key)
    assert (await _run(hands, agent, _tell(key, "GET", "checkpoint"))).output == "404"
    large = f"head -c {CHECKPOINT_BYTES_MAX} /dev/zero | tr '\\0' x | sed 's/.*/\"&\"/' > {key}.json; "
    assert (await _run(hands, agent, large + _tell(key, "PUT", "checkpoint", f"@{key}.json"))).output == "413"
    assert (await hands.signals(agent, key)).checkpoint is None


async def _read(program: OpenProgram) -> tuple[bytes, bytes]:
    """All of its stdout and stderr."""
    streams = {"stdout": b"", "stderr": b""}
    async with asyncio.timeout(ENDS_S):
        while (piece := await program.receive()) is not None:
            streams[piece.stream] += piece.data
    return streams["stdout"], streams["stderr"]


async def c62_open_program(hands: Hands, agent: str) -> None:
    """A program has its arguments, environment and directory; both streams come whole, and input reaches it."""
    script = 'read line; printf "%s %s %s %s" "$1" "$GIVEN" "$PWD" "$line"; head -c 300000 /dev/zero >&2; exit 3'
    argv = ("sh", "-c", script, "sh", "a 'b'")
    async with await hands.open_program(agent, argv, env={"GIVEN": "c d"}, cwd="/usr") as program:
        await program.send(b"e ")
        await program.send(b"f\n")
        stdout, stderr = await _read(program)
    assert stdout == b"a 'b' c d /usr e f", stdout
    assert (len(stderr), program.exit_code) == (300_000, 3), (len(stderr), program.exit_code)
    async with await hands.open_program(agent, ("sh", "-c", '[ "$PWD" = "$HOME" ]')) as program:
        await _read(program)
    assert program.exit_code == 0, program.exit_code
    async with await hands.open_program(agent, ("no-such-program",)) as program:
        await _read(program)
    assert program.exit_code == 127, program.exit_code


async def c63_program_takes_much(hands: Hands, agent: str) -> None:
    """Megabytes go in and out at the same time."""
    async with await hands.open_program(agent, ("cat",)) as program:
        sending = asyncio.create_task(program.send(b"x" * 3_000_000))
        seen = 0
        async with asyncio.timeout(ENDS_S):
            while seen < 3_000_000 and (piece := await program.receive()) is not None:
                seen += len(piece.data)
        await sending
    assert seen == 3_000_000, seen


async def c64_program_ends_with_close(hands: Hands, agent: str) -> None:
    """`signal` reaches its process group; `close` ends what runs, with its children, and may be called twice."""
    mark = f"conformance-{secrets.token_hex(4)}"
    async with await hands.open_program(agent, ("sh", "-c", "sleep 600 & echo on; wait")) as program:
        assert (await program.receive()) is not None
        await program.signal(9)
        await _read(program)
    assert program.exit_code == 128 + 9, program.exit_code
    program = await hands.open_program(agent, ("sh", "-c", f"{_beating(mark)} & echo on; wait"))
    assert (await program.receive()) is not None
    await program.close()
    await program.close()
    assert await _is_still(hands, agent, mark), "a child outlived it"


# --- recovery ------------------------------------------------------------------------------------------------------------
async def c50_reconnect(hands: Hands, agent: str) -> None:
    """`reconnect` leaves running commands alone, and the office answers after it."""
    key = _key()
    await hands.start_command(agent, key, Command("sleep 1; echo through"))
    await hands.reconnect(agent)
    assert await hands.probe(agent) is True
    assert (await _end(hands, agent, key)).output.strip() == "through"


async def c51_restart_loses_commands(hands: Hands, agent: str) -> None:
    """`restart` keeps files and database; what ran is LOST for good, and its key is not free."""
    key, mark = _key(), f"conformance-{secrets.token_hex(4)}"
    ended = _key()
    await hands.start_command(agent, ended, Command("echo kept; exit 5"))
    await _end(hands, agent, ended)
    command = Command(f"echo begun >> {mark}; sleep 600")
    await hands.start_command(agent, key, command)
    async with asyncio.timeout(ENDS_S):
        while not await hands.read_file(agent, mark):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await hands.restart(agent)
    assert await hands.probe(agent) is True
    assert (await hands.command_status(agent, key)).state is CommandState.LOST
    assert (await hands.start_command(agent, key, command)).state is CommandState.LOST
    status = await hands.command_status(agent, ended)
    assert (status.exit_code, status.output.strip()) == (5, "kept"), status
    assert await hands.read_file(agent, mark) == b"begun\n"


async def c52_restore_puts_everything_back(hands: Hands, agent: str) -> None:
    """`restore` brings back files, rows, objects and keys of one instant, and by the same key keeps the first evidence."""
    mark, table = f"conformance-{secrets.token_hex(4)}", f"conformance_{secrets.token_hex(4)}"

    async def write(word: str) -> None:
        await _run(hands, agent, f"printf {word} > {mark}")
        await hands.sql(agent, f"delete from {table}; insert into {table} values ('{word}')", key=keys[word])
        await hands.put_object(agent, mark, "conformance", mark, key=_key())

    async def read() -> list[object]:
        await _run(hands, agent, "true")  # wakes it
        return [await hands.read_file(agent, mark), (await hands.sql(agent, f"select word from {table}")).rows]

    keys = {word: _key() for word in ("old", "new")}
    await hands.sql(agent, f"create table {table} (word text)")
    await write("old")
    begun, later, restore = _key(), _key(), _key()
    await hands.start_command(agent, begun, Command(f"echo begun > {mark}.begun; sleep 600"))
    async with asyncio.timeout(ENDS_S):
        while not await hands.read_file(agent, f"{mark}.begun"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    taken = await hands.take_snapshot(agent, _key(), run_id="r", node="n", before=True, verified=True, seq=1)
    await write("new")
    await hands.start_command(agent, later, Command("sleep 600"))
    evidence = await hands.restore(agent, taken.id, key=restore, run_id="r")
    assert await read() == [b"old", [["old"]]]
    assert await hands.restore(agent, taken.id, key=restore, run_id="r") == evidence
    assert await read() == [b"old", [["old"]]]
    assert await hands.probe(agent) is True
    assert (await hands.command_status(agent, begun)).state is CommandState.LOST
    assert (await hands.command_status(agent, later)).state is CommandState.ABSENT
    repeated = [(await hands.sql(agent, "select 1", key=keys[word])).repeated for word in ("old", "new")]
    assert repeated == [True, False]
    await hands.restore(agent, evidence, key=_key(), run_id="r")
    assert await read() == [b"new", [["new"]]]
    await _raises(NotFound, hands.restore(agent, "snap_000000000000", key=_key(), run_id="r"))


async def c53_rebuild_keeps_what_the_agent_made(hands: Hands, agent: str) -> None:
    """`rebuild` keeps home, database and objects, and knows the keys of before: what ran is LOST."""
    mark, table = f"conformance-{secrets.token_hex(4)}", f"conformance_{secrets.token_hex(4)}"
    await _run(hands, agent, f"printf kept > {mark}")
    await hands.sql(agent, f"create table {table} as select 1 as n")
    begun, ended = _key(), _key()
    await hands.start_command(agent, ended, Command("exit 5"))
    await _end(hands, agent, ended)
    await hands.start_command(agent, begun, Command(f"echo begun > {mark}.begun; sleep 600"))
    async with asyncio.timeout(ENDS_S):
        while not await hands.read_file(agent, f"{mark}.begun"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    before = await hands.rebuild(agent)
    assert before.startswith("snap_"), before
    assert (await _run(hands, agent, f"cat {mark}")).output == "kept"
    assert await hands.probe(agent) is True
    assert (await hands.sql(agent, f"select n from {table}")).rows == [[1]]
    assert (await hands.command_status(agent, begun)).state is CommandState.LOST
    assert (await hands.command_status(agent, ended)).exit_code == 5


CHECKS: tuple[Callable[[Hands, str], Awaitable[None]], ...] = (
    c01_output_and_exit_code,
    c02_environment_and_directory,
    c03_same_key_same_command,
    c04_unknown_key_is_absent,
    c05_status_waits_and_does_not,
    c06_timeout_ends_the_group,
    c07_stop,
    c08_output_is_bounded,
    c09_forgotten_is_not_forgiven,
    c10_running_is_not_forgotten,
    c20_sql_result,
    c21_sql_once_per_key,
    c22_sql_all_or_nothing,
    c23_sql_that_only_reads,
    c24_questions_about_data,
    c30_put_object,
    c31_notify_once,
    c32_read_file,
    c33_snapshot_once,
    c34_objects,
    c35_named_snapshot_once,
    c36_run_once,
    c37_schedule_once,
    c40_unknown_agent,
    c50_reconnect,
    c60_signals,
    c61_signals_of_nobody,
    c62_open_program,
    c63_program_takes_much,
    c64_program_ends_with_close,
)
DISRUPTIVE_CHECKS: tuple[Callable[[Hands, str], Awaitable[None]], ...] = (
    c51_restart_loses_commands,
    c52_restore_puts_everything_back,
    c53_rebuild_keeps_what_the_agent_made,
)
