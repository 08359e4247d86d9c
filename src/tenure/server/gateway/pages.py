"""What a person sees who may not pass, or whose office does not answer: a page in a browser, a line of text elsewhere."""

from __future__ import annotations

from html import escape
from http import HTTPStatus

from starlette.types import Scope, Send

from tenure.errors import TenureError
from tenure.server.gateway.headers import Header, value_of

SAFE = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>{head}
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:38rem;margin:15vh auto;padding:0 1rem;color-scheme:light dark}}
code{{font-size:.95em}}h1{{font-size:1.3rem}}.hint{{opacity:.75}}</style></head>
<body><h1>{title}</h1><p>{message}</p><p class="hint">{hint}</p></body></html>
"""


async def answer_error(scope: Scope, send: Send, error: TenureError, status: int | None = None) -> None:
    """Answers a request, or refuses a WebSocket, with what `error` says."""
    status = status or error.http_status
    if _wants_html(scope):
        title = f"{status} {HTTPStatus(status).phrase}"
        body, kind = _page(title, _prose(error.message), _prose(error.hint)), b"text/html; charset=utf-8"
    else:
        body, kind = f"{error.message}\n{error.hint}".strip() + "\n", b"text/plain; charset=utf-8"
    await answer(scope, send, status, body, kind)


async def answer_page(scope: Scope, send: Send, title: str, message: str, head: str, extra: list[Header]) -> None:
    """`message` is text, `head` HTML."""
    await answer(scope, send, 200, _page(title, _prose(message), "", head), b"text/html; charset=utf-8", extra)


async def answer(
    scope: Scope, send: Send, status: int, body: str, kind: bytes, extra: list[Header] | None = None
) -> None:
    """A whole answer of ours, which no cache keeps and no page frames."""
    data = b"" if scope.get("method") == "HEAD" else body.encode("utf-8", "replace")
    headers = [*SAFE, (b"content-type", kind), (b"content-length", str(len(data)).encode()), *(extra or [])]
    prefix = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    await send({"type": f"{prefix}.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}.body", "body": data})


def _wants_html(scope: Scope) -> bool:
    return "text/html" in (value_of(scope["headers"], b"accept") or "")


def _prose(text: str) -> str:
    """As HTML; what stands between backticks is code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def _page(title: str, message: str, hint: str, head: str = "") -> str:
    return _PAGE.format(title=escape(title), message=message, hint=hint, head=head)
