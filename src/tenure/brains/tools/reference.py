"""Writes docs/tools.md from the catalogue itself: `python -m tenure.brains.tools.reference`.

A test fails when the file and the code have drifted apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tenure.brains.tools.catalogue import CATALOGUE
from tenure.brains.tools.tool import Tool

HEAD = """# The office's tools

Written from the catalogue by `python -m tenure.brains.tools.reference`; do not edit.

What a brain can do in its agent's office. Every brain that thinks is given these tools, and programs in the office have the
same ones over the Model Context Protocol at `http://api:8700/mcp` (streamable HTTP, no session, no token: the office's door says
who calls).

- A tool that *reads* changes nothing. While a brain plans, it has only those.
- Wrong arguments, an unknown name, an exit code that is not 0 are answers, which say how to mend the call. An office that
  fails is the work engine's to mend: it makes the call again by the same key.
- Each call has an idempotency key: made again after a crash, it finds out what the first one did and does not do it again.
  What was begun and is lost, because the sandbox died under it, is told as *unverified*, never repeated. A program that
  speaks MCP may send a key of its own with a call, as `tenure/key` in its `_meta`; without one, each call is a new one, and
  what it runs in the shell ends when the program goes away. A result that is unverified has `tenure/unverified` there.
- A result has at most 32,000 characters; more is cut in the middle, and the result says how to see the rest.
- Over MCP, an office has at most 16 calls under way at once and 1 MiB in a request, may start and cancel runs of its own
  agent only, and leaves messages within the limits of its door.

Asking a person, waiting, proposing a plan and finishing are decisions of a brain, not tools of the office.

"""


def document() -> str:
    """docs/tools.md."""
    return HEAD + "\n".join(line for tool in CATALOGUE for line in _lines(tool))


def _lines(tool: Tool[Any]) -> Iterator[str]:
    yield f"## {tool.name}"
    yield ""
    yield tool.description + (" Reads." if tool.reads else "")
    yield ""
    parameters = tool.parameters
    for name, field in parameters["properties"].items():
        needed = "" if name in parameters["required"] else ", may be left out"
        yield f"- `{name}` ({_kind(field)}{needed}): {field['description']}"
    if parameters["properties"]:
        yield ""


def _kind(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(field["enum"])
    if field["type"] == "array":
        return f"list of {field['items']['type']}"
    low, high = field.get("minimum"), field.get("maximum")
    bounds = f", {low:g} to {high:g}" if low is not None and high is not None else ""
    return field["type"] + bounds


if __name__ == "__main__":
    target = Path(__file__).parents[4] / "docs" / "tools.md"
    target.write_text(document())
