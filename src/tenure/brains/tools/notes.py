"""Notes: what an agent wants to know in later runs, too. Files in `notes` in its home, for people to read as well."""

from __future__ import annotations

from pydantic import Field

from tenure.brains.tools.commands import look
from tenure.brains.tools.files import CONTENT_BYTES_MAX, written
from tenure.brains.tools.tool import Arguments, Call, Refused, Tool, done
from tenure.brains.tools.words import cut, near
from tenure.work.hands import Command
from tenure.work.thoughts import CallResult

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"
DIRECTORY = "notes"
LINES_MAX = 10_000
LIST_SCRIPT = f"""\
cd "$HOME/{DIRECTORY}" 2>/dev/null || exit 0
for file in *; do [ -f "$file" ] && printf '%s\\t%s\\n' "$file" "$(head -n 1 -- "$file" | cut -c 1-200)"; done
exit 0
"""


class Nothing(Arguments):
    pass


class Named(Arguments):
    name: str = Field(pattern=NAME_PATTERN, description="Of a note, as in note_list.")


class Write(Arguments):
    name: str = Field(pattern=NAME_PATTERN, description="Letters, digits, '.', '_', '-': deployment.md.")
    content: str = Field(max_length=CONTENT_BYTES_MAX, description="Its first line says what it is about.")
    append: bool = Field(
        default=False, description="Add to what is there, in a new line. Without it, that is replaced."
    )


async def list_all(call: Call, _: Nothing) -> CallResult:
    names = await _names(call)
    return done(cut("\n".join(f"{name}: {about}" for name, about in names.items())) or "There are no notes yet.")


async def read(call: Call, wanted: Named) -> CallResult:
    data = await call.hands.read_file(call.agent, f"{DIRECTORY}/{wanted.name}", bytes_max=CONTENT_BYTES_MAX)
    if data is None:
        names = await _names(call)
        raise Refused(f"There is no note {wanted.name}.{near(wanted.name, names)} See note_list.")
    text = data.decode("utf-8", "replace")
    return done(cut(text, f"read_file shows all of {DIRECTORY}/{wanted.name} in parts"))


async def write(call: Call, wanted: Write) -> CallResult:
    return await written(call, f"{DIRECTORY}/{wanted.name}", wanted.content, append=wanted.append)


async def _names(call: Call) -> dict[str, str]:
    status = await look(call, Command(LIST_SCRIPT, timeout_s=60))
    return dict(line.split("\t", 1) for line in status.output.splitlines() if "\t" in line)


TOOLS = (
    Tool(
        "note_list",
        "Notes of earlier runs, with their first lines. Look here before beginning.",
        Nothing,
        list_all,
        reads=True,
    ),
    Tool("note_read", "A note.", Named, read, reads=True),
    Tool(
        "note_write",
        "Write down what later runs should know: decisions, findings, how things are done here.",
        Write,
        write,
    ),
)
