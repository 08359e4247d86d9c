"""A scripted model behind real HTTP on the loopback, in OpenAI's protocol (chat completions), with all the ways to fail.

    with ModelServer([calls(Call("shell", {"command": "ls"})), Hang(), says("done")]) as server:
        settings = BrainSettings(models=("openai:scripted",), base_url=server.base_url)
        …

Each entry of the script answers one request, in their order. It is not kind: a request that is no valid conversation, or for
which the script has no answer, is refused and fails the test at the end of the `with`, as does an entry that nobody asked for.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, cast

from tenure.data.query.search.hashing import vector_of
from tenure.testing.model_requests import ModelRequestSeen, problems_of

KEY = "sk-loopback-0123456789abcdef"
"""The key that the server wants, where it wants one."""
PIECE_CHARS_MIN, PIECES_MAX = 7, 50
"""Of an answer's text, and of a call's arguments, in a stream."""
DRIP_S = 0.01


# --- what a script may say -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Call:
    """`arguments` as text are sent as they are, broken or not. Without an `id` it gets one of its own."""

    tool: str
    arguments: Mapping[str, Any] | str
    id: str | None = None


@dataclass(frozen=True)
class Reply:
    """`usage` (input, output); None: the server does not count. `finish_reason` None: what fits."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    usage: tuple[int, int] | None = (100, 10)
    finish_reason: str | None = None


def says(text: str, **more: Any) -> Reply:
    return Reply(text=text, **more)


def calls(*called: Call, text: str = "", **more: Any) -> Reply:
    return Reply(text=text, calls=called, **more)


@dataclass(frozen=True)
class Refuse:
    """An error of the provider, before an answer begins."""

    status: int
    message: str = "The server had an error."
    code: str | None = None
    headers: Mapping[str, str] | None = None


def rate_limited(retry_after: str | None = None) -> Refuse:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return Refuse(429, "Rate limit reached.", "rate_limit_exceeded", headers)


def context_too_long() -> Refuse:
    message = "This model's maximum context length is 8192 tokens. Reduce the length of the messages."
    return Refuse(400, message, "context_length_exceeded")


@dataclass(frozen=True)
class Down:
    """503, `times` times; or as long as `until` has not come by `clock` (then it is no longer there)."""

    times: int = 1
    until: float | None = None
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Hang:
    """Silence until the server is closed: before the answer, or after its first piece."""

    begun: bool = False


@dataclass(frozen=True)
class Drip:
    """A sign of life again and again, and never an answer."""


@dataclass(frozen=True)
class Cut:
    """The connection is closed in the middle of the answer: abruptly, or as if that were its end."""

    reply: Reply = Reply(text="this will never be whole")
    cleanly: bool = False


@dataclass(frozen=True)
class Raw:
    """Any bytes with status 200."""

    body: bytes
    content_type: str = "text/event-stream"


Answer = Reply | Refuse | Down | Hang | Drip | Cut | Raw


@dataclass(frozen=True)
class Always:
    """Every request from here on, also none: for a conversation whose place is told by the request alone."""

    answer: Callable[[ModelRequestSeen], Answer]


Entry = Answer | Callable[[ModelRequestSeen], Answer] | Always


EMBEDDING_DIMENSION = 128


# --- the server ----------------------------------------------------------------------------------------------------------
class ModelServer:
    """`script`, or several by what occurs in the user's first words (the longest that fits; "" fits all). With `key`, a request
    without it is refused. `fired` names what was answered, in order; `requests` has all that came."""

    def __init__(
        self, script: Sequence[Entry] | Mapping[str, Sequence[Entry]], *, key: str | None = None, port: int = 0
    ) -> None:
        scripts = script if isinstance(script, Mapping) else {"": script}
        self._scripts = {words: list(entries) for words, entries in scripts.items()}
        self._key, self._port = key, port
        self._lock, self._closing = threading.Lock(), threading.Event()
        self.requests: list[ModelRequestSeen] = []
        self.fired: list[str] = []
        self.problems: list[str] = []
        self.embedded: list[ModelRequestSeen] = []
        """Requests for embeddings, which need no script: texts that have words in common are alike."""
        self.embedding_faults: list[Answer] = []
        """Answers to the next of those requests, instead."""

    def __enter__(self) -> Self:
        server = self

        class Handler(_Handler):
            model = server

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="model-server")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if kind is None:
            self.assert_complete()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def assert_complete(self) -> None:
        """Every entry was asked for, nothing else was, and every request was valid."""
        left = {words: entries for words, entries in self._scripts.items() if self._still(entries)}
        assert not self.problems, "\n".join(self.problems)
        assert not left, f"Nobody asked for {left}; answered were {self.fired}."

    def _still(self, entries: list[Entry]) -> bool:
        endless = (Always, Down)
        return any(not isinstance(entry, endless) or getattr(entry, "until", "") is None for entry in entries)

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        return self._closing.wait(timeout_s)

    def answer(self, path: str, headers: dict[str, str], body: Any) -> tuple[ModelRequestSeen, Answer]:
        """What the script says to a request; a refusal for one that should not have come."""
        with self._lock:
            fields = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
            seen = ModelRequestSeen(len(self.requests) + len(self.embedded), headers, fields)
            if path == "/v1/embeddings":
                self.embedded.append(seen)
                return seen, self._embed(seen)
            self.requests.append(seen)
            if path != "/v1/chat/completions":
                return seen, self._fail(seen, f"there is no {path}", 404)
            if self._key is not None and headers.get("authorization") != f"Bearer {self._key}":
                self.fired.append("Unauthorized")
                given = headers.get("authorization", "").removeprefix("Bearer ")
                return seen, Refuse(401, f"Incorrect API key provided: {given}.", "invalid_api_key")
            if problems := problems_of(body):
                return seen, self._fail(seen, "; ".join(problems), 400)
            fits = [words for words in self._scripts if words in seen.first]
            entries = self._scripts[max(fits, key=len)] if fits else []
            try:
                answer = self._next(entries, seen)
            except Exception as error:  # noqa: BLE001 - also a failed assertion of a script's function fails the test
                return seen, self._fail(seen, f"the script's function raised {type(error).__name__}: {error}", 500)
            if answer is None:
                return seen, self._fail(seen, f"the script has no answer to {seen.last[:300]!r}", 400)
            self.fired.append(type(answer).__name__)
            return seen, answer

    def _embed(self, seen: ModelRequestSeen) -> Answer:
        """As OpenAI does, and as picky: what it would refuse, this does."""
        if self.embedding_faults:
            return self.embedding_faults.pop(0)
        if self._key is not None and seen.headers.get("authorization") != f"Bearer {self._key}":
            return Refuse(401, "Incorrect API key provided.", "invalid_api_key")
        texts, model = seen.body.get("input"), seen.body.get("model")
        if not isinstance(model, str) or not isinstance(texts, list) or not texts or not all(texts):  # pyright: ignore[reportUnknownArgumentType]
            return Refuse(
                400, "'input' is a list of texts that are not empty, 'model' a name.", "invalid_request_error"
            )
        size = int(seen.body.get("dimensions") or EMBEDDING_DIMENSION)
        data: list[dict[str, Any]] = []
        for index, text in enumerate(cast("list[str]", texts)):
            whole = vector_of(text)
            folded = [sum(whole[at::size]) for at in range(size)]
            data.append({"object": "embedding", "index": index, "embedding": [2 * value for value in folded]})
        body = {"object": "list", "model": model, "data": data[::-1], "usage": {"prompt_tokens": 1, "total_tokens": 1}}
        return Raw(json.dumps(body).encode(), "application/json")

    def _next(self, entries: list[Entry], seen: ModelRequestSeen) -> Answer | None:
        while entries:
            entry = entries[0]
            if isinstance(entry, Down) and entry.until is not None:
                if entry.clock() < entry.until:
                    return entry
                entries.pop(0)
                continue
            if isinstance(entry, Always):
                return entry.answer(seen)
            if isinstance(entry, Down) and entry.times > 1:
                entries[0] = replace(entry, times=entry.times - 1)
                return entry
            entries.pop(0)
            return entry(seen) if callable(entry) else entry
        return None

    def _fail(self, seen: ModelRequestSeen, why: str, status: int) -> Refuse:
        self.problems.append(f"request {seen.number}: {why}")
        return Refuse(status, f"Invalid request: {why}", "invalid_request_error")


class _Handler(BaseHTTPRequestHandler):
    model: ModelServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen, answer = self.model.answer(self.path, headers, body)
        self.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client may give up
            self._give(seen, answer)

    def _give(self, seen: ModelRequestSeen, answer: Answer) -> None:
        match answer:
            case Refuse():
                error = {"message": answer.message, "type": "error", "param": None, "code": answer.code}
                self._whole(answer.status, json.dumps({"error": error}).encode(), headers=answer.headers)
            case Down():
                self._whole(
                    503, b'{"error": {"message": "Service unavailable.", "type": "server_error", "code": null}}'
                )
            case Raw():
                self._whole(200, answer.body, answer.content_type)
            case Hang(begun=False):
                self.model.wait_closed()
            case Hang():
                self._stream(_events(seen, Reply(text="this hangs"))[:2], end=False)
                self.model.wait_closed()
            case Drip():
                self._stream([], end=False)
                while not self.model.wait_closed(DRIP_S):
                    self._chunk(b": still here\n\n")
            case Cut(cleanly=cleanly):
                events = _events(seen, answer.reply)
                self._stream(events[: len(events) // 2], end=cleanly)
            case Reply() if seen.body.get("stream"):
                self._stream([*_events(seen, answer), b"data: [DONE]\n\n"], end=True)
            case Reply():
                self._whole(200, json.dumps(_completion(seen, answer)).encode())

    def _whole(
        self,
        status: int,
        body: bytes,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: list[bytes], *, end: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in events:
            self._chunk(event)
        if end:
            self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, event: bytes) -> None:
        self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        self.wfile.flush()


# --- the protocol --------------------------------------------------------------------------------------------------------
def _finish_reason(reply: Reply) -> str:
    return reply.finish_reason or ("tool_calls" if reply.calls else "stop")


def _called(seen: ModelRequestSeen, reply: Reply) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id if call.id is not None else f"call_{seen.number}_{index}",
            "type": "function",
            "function": {
                "name": call.tool,
                "arguments": call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments),
            },
        }
        for index, call in enumerate(reply.calls)
    ]


def _usage(reply: Reply) -> dict[str, int] | None:
    if reply.usage is None:
        return None
    given, written = reply.usage
    return {"prompt_tokens": given, "completion_tokens": written, "total_tokens": given + written}


def _completion(seen: ModelRequestSeen, reply: Reply) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply.text or None, "tool_calls": _called(seen, reply) or None}
    choice = {"index": 0, "message": message, "finish_reason": _finish_reason(reply)}
    return {**_head(seen, "chat.completion"), "choices": [choice], "usage": _usage(reply)}


def _head(seen: ModelRequestSeen, kind: str) -> dict[str, Any]:
    return {"id": f"answer-{seen.number}", "object": kind, "created": 1_700_000_000, "model": seen.body["model"]}


def _events(seen: ModelRequestSeen, reply: Reply) -> list[bytes]:
    head = _head(seen, "chat.completion.chunk")
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in _pieces(reply.text)]
    for index, call in enumerate(_called(seen, reply)):
        function = call["function"]
        deltas.append(
            {"tool_calls": [{**call, "index": index, "function": {"name": function["name"], "arguments": ""}}]}
        )
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
            for piece in _pieces(function["arguments"])
        ]
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": _finish_reason(reply)}]})
    if reply.usage is not None and seen.body.get("stream_options", {}).get("include_usage"):
        chunks.append({**head, "choices": [], "usage": _usage(reply)})
    return [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]


def _pieces(text: str) -> list[str]:
    size = max(PIECE_CHARS_MIN, -(-len(text) // PIECES_MAX))
    return [text[start : start + size] for start in range(0, len(text), size)]
