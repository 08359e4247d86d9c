"""Files of the office, read and changed as its user."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tenure.brains.tools.commands import EXIT_REFUSED, EXIT_UNKNOWN, LOOK_TIMEOUT_S, ask, look, program, run_once
from tenure.brains.tools.tool import Arguments, Call, Refused, Tool, done, failed, unverified
from tenure.brains.tools.words import cut
from tenure.work.hands import CommandState, CommandStatus
from tenure.work.thoughts import CallResult

PATH_CHARS_MAX = 4096
PATTERN_CHARS_MAX = 1000
CONTENT_BYTES_MAX = 512 * 1024
LINES_DEFAULT, LINES_MAX = 1000, 10_000
CHANGE_TIMEOUT_S = 120.0
IN_HOME = "A relative path begins in the home."


class Read(Arguments):
    path: str = Field(min_length=1, max_length=PATH_CHARS_MAX, description=f"Of the file. {IN_HOME}")
    first_line: int = Field(default=1, ge=1, description="Line to begin with. Without it, the first.")
    lines: int = Field(
        default=LINES_DEFAULT, ge=1, le=LINES_MAX, description=f"How many lines at most. Without it, {LINES_DEFAULT}."
    )


class Write(Arguments):
    path: str = Field(
        min_length=1, max_length=PATH_CHARS_MAX, description=f"Of the file. {IN_HOME} Missing directories are made."
    )
    content: str = Field(max_length=CONTENT_BYTES_MAX, description="All that the file is to have in it.")


class Edit(Arguments):
    path: str = Field(min_length=1, max_length=PATH_CHARS_MAX, description=f"Of a file that exists. {IN_HOME}")
    old: str = Field(
        min_length=1,
        max_length=CONTENT_BYTES_MAX,
        description="Text to replace, exactly as it is in the file, with its white space and without line numbers. Give enough "
        "of what stands around it that it is there only once.",
    )
    new: str = Field(max_length=CONTENT_BYTES_MAX, description="Text to put in its place.")
    all: bool = Field(
        default=False, description="Replace it everywhere in the file. Without it, it must be there once."
    )


class List(Arguments):
    path: str = Field(default=".", max_length=PATH_CHARS_MAX, description=f"Of a directory. {IN_HOME}")


class Find(Arguments):
    pattern: str = Field(
        min_length=1, max_length=PATTERN_CHARS_MAX, description="Names to find: *.py, test_*, src/**/*.ts."
    )
    path: str = Field(default=".", max_length=PATH_CHARS_MAX, description=f"Directory to look below. {IN_HOME}")


class Search(Arguments):
    pattern: str = Field(min_length=1, max_length=PATTERN_CHARS_MAX, description="Regular expression of Python's.")
    path: str = Field(
        default=".", max_length=PATH_CHARS_MAX, description=f"Directory to look below, or a single file. {IN_HOME}"
    )
    glob: str = Field(
        default="", max_length=PATTERN_CHARS_MAX, description="Only in files with such names: *.py. Without it, in all."
    )
    ignore_case: bool = Field(default=False, description="Whether A is a.")


async def read(call: Call, wanted: Read) -> CallResult:
    return await looked(call, "read", wanted.model_dump())


async def list_all(call: Call, wanted: List) -> CallResult:
    return await looked(call, "list", wanted.model_dump())


async def find(call: Call, wanted: Find) -> CallResult:
    return await looked(call, "find", wanted.model_dump())


async def search(call: Call, wanted: Search) -> CallResult:
    return await looked(call, "search", wanted.model_dump())


async def write(call: Call, wanted: Write) -> CallResult:
    return await written(call, wanted.path, wanted.content)


async def written(call: Call, path: str, content: str, *, append: bool = False) -> CallResult:
    """Replaces the file as a whole, or adds to it, once."""
    check_size("content", content)
    return await changed(call, {"do": "write", "path": path, "content": content, "append": append})


async def edit(call: Call, wanted: Edit) -> CallResult:
    check_size("old", wanted.old)
    check_size("new", wanted.new)
    if wanted.old == wanted.new:
        raise Refused("Nothing was changed: the old and the new text are the same.")
    return await changed(call, {"do": "edit", **wanted.model_dump()})


def check_size(name: str, text: str) -> None:
    """Raises `Refused`."""
    size_bytes = len(text.encode("utf-8", "replace"))
    if size_bytes > CONTENT_BYTES_MAX:
        raise Refused(
            f"Nothing was done: {name} has {size_bytes} bytes, {CONTENT_BYTES_MAX} are allowed. Write it in parts, or make it "
            "with a program in the office."
        )


async def looked(call: Call, do: str, arguments: dict[str, Any]) -> CallResult:
    """What the program `files` finds."""
    status = await look(call, program("files", {"do": do, **arguments}))
    return told(status, LOOK_TIMEOUT_S)


async def changed(call: Call, arguments: dict[str, Any]) -> CallResult:
    """What the program `replace` did; where the sandbox died under it, another one looks what became of it."""
    wanted = program("replace", {"key": call.key, **arguments}, timeout_s=CHANGE_TIMEOUT_S)
    status = await run_once(call, wanted)
    if status.state is CommandState.LOST or status.timed_out:
        status = await ask(call, program("replace", {"do": "settle", "key": call.key}))
    return told(status, CHANGE_TIMEOUT_S)


def told(status: CommandStatus, timeout_s: float) -> CallResult:
    """The result that one of our programs inside stands for."""
    output = status.output
    if status.state is CommandState.LOST:
        return unverified(f"The sandbox ended meanwhile; whether it took effect is not known.\n{output}".rstrip())
    if status.timed_out:
        return failed(f"It did not end within {timeout_s:g} s. Ask for less: a directory below, a simpler pattern.")
    if status.exit_code == 0:
        return done(output)
    if status.exit_code == EXIT_REFUSED:
        return failed(output)
    if status.exit_code == EXIT_UNKNOWN:
        return unverified(output)
    return failed(
        f"The office's python3 could not do this (exit code {status.exit_code}):\n{cut(output, chars_max=4000)}"
    )


TOOLS = (
    Tool(
        "read_file",
        "Lines of a text file, each with its number. What is longer than fits is shown in parts.",
        Read,
        read,
        reads=True,
    ),
    Tool("write_file", "Make a file, or replace all that is in it.", Write, write),
    Tool("edit_file", "Replace a piece of text in a file by another.", Edit, edit),
    Tool("list_files", "What is in a directory, with sizes and times (UTC).", List, list_all, reads=True),
    Tool(
        "find_files",
        "Files by name, below a directory. Directories such as .git, node_modules and caches are passed by.",
        Find,
        find,
        reads=True,
    ),
    Tool(
        "search_files",
        "Lines in text files that match a regular expression, below a directory. Directories such as .git and node_modules "
        "are passed by.",
        Search,
        search,
        reads=True,
    ),
)
