"""HTTP from inside the office: to itself, and through its egress to what its owner allows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tenure.brains.tools.commands import look, program, run_once
from tenure.brains.tools.files import check_size, told
from tenure.brains.tools.tool import Arguments, Call, Tool
from tenure.work.thoughts import CallResult

TIMEOUT_S_DEFAULT, TIMEOUT_S_MAX = 60.0, 600.0
MARGIN_S = 15.0
URL_CHARS_MAX = 8000
HEADER_CHARS_MAX = 4000
HEADERS_MAX = 50
BODY_CHARS_MAX = 512 * 1024
SAFE = ("GET", "HEAD")


class Request(Arguments):
    url: str = Field(min_length=1, max_length=URL_CHARS_MAX, description="With http:// or https://.")
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = Field(
        default="GET", description="Without it, GET."
    )
    headers: list[str] = Field(default_factory=list[str], max_length=HEADERS_MAX, description="Each as 'Name: value'.")
    body: str = Field(default="", max_length=BODY_CHARS_MAX, description="What to send. Without it, nothing.")
    timeout_s: float = Field(
        default=TIMEOUT_S_DEFAULT,
        ge=1,
        le=TIMEOUT_S_MAX,
        description=f"Longest silence, in seconds. Without it, {TIMEOUT_S_DEFAULT:g}.",
    )


async def request(call: Call, wanted: Request) -> CallResult:
    check_size("body", wanted.body)
    timeout_s = 2 * wanted.timeout_s + MARGIN_S
    command = program("web", wanted.model_dump(), timeout_s=timeout_s)
    status = await (look if wanted.method in SAFE else run_once)(call, command)
    result = told(status, timeout_s)
    if status.timed_out and wanted.method not in SAFE:
        return result.model_copy(
            update={
                "unverified": True,
                "output": "No whole answer came in time. Whether the request took "
                "effect there is not known: ask before it is sent again.",
            }
        )
    return result


TOOLS = (
    Tool(
        "http_request",
        "Make an HTTP request from inside the office and see status, headers and text. It reaches the office's own services, "
        "and of the world what the owner allows.",
        Request,
        request,
    ),
)
