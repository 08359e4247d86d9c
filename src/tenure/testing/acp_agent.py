"""A stub of an agent that speaks the Agent Client Protocol, for tests: `python3 acp_agent.py`, the standard library only.

What it does is scripted by the environment variable `TENURE_STUB`, JSON:

    actions    list of lists, done one after another in answer to a prompt: a method of `Agent`, and its arguments; or a
               mapping of such lists by `STEP.ATTEMPT`
    concludes  what it says at the end of each prompt
    load       whether sessions can be loaded (default true); they are kept in `./.stub`
    mcp        whether it says that it takes MCP servers over HTTP
    login      asks for a login instead of a session
    version    of the protocol
    die        {"at": "before" or "after", "message": NAME, "nth": 1}: ends itself there with SIGKILL, once ever

A message is named by its method, the answer to one `answer:METHOD`; those that it receives are `got:METHOD`. Everything that
it does is a line of `./.stub/log`, and a death one of `./.stub/died`. Each action has a number; a loaded session goes on with
the first one that is not done, a new one begins with the first. It repeats blindly what it may have done before, but for what
is to be done `once`, when it was told that it was interrupted: then it looks.
"""

import json
import os
import signal
import sys
import time
from typing import Any

STUB: dict[str, Any] = json.loads(os.environ.get("TENURE_STUB") or "{}")
HOME = ".stub"
NONE: dict[str, Any] = {}


def note(file: str, line: str) -> None:
    with open(os.path.join(HOME, file), "a") as opened:
        opened.write(line + "\n")


def lines(file: str) -> list[str]:
    try:
        with open(os.path.join(HOME, file)) as opened:
            return opened.read().splitlines()
    except FileNotFoundError:
        return []


class Wire:
    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self.names: dict[Any, str] = {}
        self.last = 0

    def point(self, at: str, name: str) -> None:
        wanted = STUB.get("die")
        if not wanted or (wanted["at"], wanted["message"]) != (at, name):
            return
        count = self.counts[at, name] = self.counts.get((at, name), 0) + 1
        mark = f"{at} {name} {wanted.get('nth', 1)}"
        if count == wanted.get("nth", 1) and mark not in lines("died"):
            note("died", mark)
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, message: Any) -> None:
        name = message.get("method") or "answer:" + self.names.pop(message.get("id"), "?")
        self.point("before", name)
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
        self.point("after", name)

    def read(self) -> Any:
        line = sys.stdin.readline()
        if not line:
            sys.exit(0)
        message = json.loads(line)
        name = message.get("method")
        if name and "id" in message:
            self.names[message["id"]] = name
        self.point("before", f"got:{name or 'answer'}")
        return message

    def tell(self, method: str, params: Any) -> None:
        self.write({"jsonrpc": "2.0", "method": method, "params": params})

    def answer(self, request: Any, result: Any = None, error: Any = None) -> None:
        body = {"error": error} if error else {"result": result}
        self.write({"jsonrpc": "2.0", "id": request["id"], **body})

    def ask(self, method: str, params: Any) -> Any:
        """The result; what else comes meanwhile is a cancellation, and ends the prompt."""
        self.last += 1
        self.write({"jsonrpc": "2.0", "id": f"s{self.last}", "method": method, "params": params})
        while True:
            message = self.read()
            if message.get("method") == "session/cancel":
                raise Cancelled
            if message.get("id") == f"s{self.last}":
                if "error" in message:
                    raise Refused(message["error"]["message"])
                return message["result"]


class Cancelled(Exception):
    pass


class Refused(Exception):
    pass


class Agent:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.session = ""
        self.interrupted = False

    def update(self, what: str, **fields: Any) -> None:
        update = {"sessionUpdate": what, **fields}
        self.wire.tell("session/update", {"sessionId": self.session, "update": update})

    def ask(self, method: str, **params: Any) -> Any:
        return self.wire.ask(method, {"sessionId": self.session, **params})

    # --- what can be scripted ----------------------------------------------------------------------------------------
    def say(self, text: str) -> None:
        self.update("agent_message_chunk", content={"type": "text", "text": text})

    def plan(self, *entries: str) -> None:
        self.update("plan", entries=[{"content": one, "priority": "medium", "status": "pending"} for one in entries])

    def write(self, path: str, text: str) -> None:
        self.ask("fs/write_text_file", path=os.path.abspath(path), content=text)

    def edit(self, path: str, old: str, new: str) -> None:
        text = self.ask("fs/read_text_file", path=os.path.abspath(path))["content"]
        if old in text:
            self.ask("fs/write_text_file", path=os.path.abspath(path), content=text.replace(old, new))

    def read(self, path: str, line: Any = None, limit: Any = None) -> None:
        found = self.ask("fs/read_text_file", path=os.path.abspath(path), line=line, limit=limit)
        note("log", "read " + json.dumps(found["content"]))

    def run(self, *words: str) -> None:
        """A command in a terminal, to its end."""
        call = f"call{self.wire.last}"
        self.update("tool_call", toolCallId=call, title=words[-1][:80], kind="execute", status="in_progress")
        terminal = self.ask("terminal/create", command=words[0], args=list(words[1:]))["terminalId"]
        ended = self.ask("terminal/wait_for_exit", terminalId=terminal)
        shown = self.ask("terminal/output", terminalId=terminal)
        self.ask("terminal/release", terminalId=terminal)
        note("log", "ran " + json.dumps([ended, shown["output"]]))
        self.update("tool_call_update", toolCallId=call, status="completed")

    def start(self, *words: str) -> None:
        """A command in a terminal that is left running."""
        self.ask("terminal/create", command=words[0], args=list(words[1:]))

    def permit(self, title: str, kind: str, *words: str) -> None:
        """Asks for permission, and runs the command when it has it."""
        call = {"toolCallId": f"p{self.wire.last}", "title": title, "kind": kind, "rawInput": {"words": list(words)}}
        options = [
            {"optionId": "a", "name": "Allow", "kind": "allow_once"},
            {"optionId": "A", "name": "Always", "kind": "allow_always"},
            {"optionId": "r", "name": "Reject", "kind": "reject_once"},
        ]
        outcome = self.ask("session/request_permission", toolCall=call, options=options)["outcome"]
        note("log", f"permission {outcome.get('optionId', outcome['outcome'])}")
        if outcome.get("optionId") == "a" and words:
            self.run(*words)

    def once(self, file: str, word: str, *action: str) -> None:
        """An action that leaves `word` in `file`."""
        if self.interrupted and os.path.exists(file):
            with open(file) as opened:
                if word in opened.read().split():
                    note("log", f"found {word}")
                    return
        getattr(self, action[0])(*action[1:])

    def usage(self, used: int, cost: float) -> None:
        self.update("usage_update", used=used, size=1000, cost={"amount": cost, "currency": "USD"})

    def try_(self, *action: str) -> None:
        """An action that may be refused."""
        try:
            getattr(self, action[0])(*action[1:])
        except Refused as error:
            note("log", f"refused {error}")

    def stop(self, reason: str) -> None:
        raise StopIteration(reason)

    def flood(self, count: int, size: int) -> None:
        for _ in range(count):
            self.say("x" * size)

    def garbage(self, count: int) -> None:
        for number in range(count):
            sys.stdout.write(("[1, 2]", '{"id": {}}', "no json", '{"jsonrpc": "2.0"}', "null")[number % 5] + "\n")
        sys.stdout.flush()

    def endless(self) -> None:
        while True:
            sys.stdout.write("x" * 65536)

    def complain(self, count: int) -> None:
        for number in range(count):
            sys.stderr.write(f"complaint {number}\n")
        sys.stderr.flush()

    def hang(self) -> None:
        note("log", "hangs")
        while True:
            time.sleep(1000)

    def stubborn(self) -> None:
        """Hangs, and does not end when it is asked to."""
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        self.hang()

    def fail(self, code: int) -> None:
        sys.exit(code)

    # --- the protocol ------------------------------------------------------------------------------------------------
    def done_file(self) -> str:
        return f"done-{self.session}"

    def prompt(self, request: Any) -> None:
        text = request["params"]["prompt"][0]["text"]
        note("prompts", json.dumps(text))
        self.interrupted = "You were interrupted" in text
        done = len(lines(self.done_file()))
        reason = "end_turn"
        try:
            for action in actions()[done:]:
                name = "try_" if action[0] == "try" else str(action[0])
                getattr(self, name)(*action[1:])
                note(self.done_file(), action[0])
        except StopIteration as stop:
            reason = str(stop)
        except Cancelled:
            reason = "cancelled"
            note("log", "cancelled")
        if reason == "end_turn" and "concludes" in STUB:
            self.say(STUB["concludes"])
        usage = {"totalTokens": 30, "inputTokens": 20, "outputTokens": 10}
        self.wire.answer(request, {"stopReason": reason, "usage": usage})

    def serve(self) -> None:
        while True:
            request = self.wire.read()
            method, params = request.get("method"), request.get("params", NONE)
            if method == "initialize":
                can = {"loadSession": STUB.get("load", True), "mcpCapabilities": {"http": STUB.get("mcp", False)}}
                methods = [{"id": "key", "name": "An API key"}] if STUB.get("login") else []
                version = STUB.get("version", 1)
                self.wire.answer(
                    request, {"protocolVersion": version, "agentCapabilities": can, "authMethods": methods}
                )
            elif method in ("session/new", "session/load") and STUB.get("login"):
                self.wire.answer(request, error={"code": -32000, "message": "Authentication required"})
            elif method == "session/new":
                note("mcp", json.dumps(params["mcpServers"]))
                note("sessions", params["cwd"])
                self.session = f"session-{len(lines('sessions'))}"
                self.wire.answer(request, {"sessionId": self.session})
            elif method == "session/load":
                self.session = str(params["sessionId"])
                known = [f"session-{n + 1}" for n in range(len(lines("sessions")))]
                if STUB.get("forgets") or self.session not in known:
                    self.wire.answer(request, error={"code": -32002, "message": "Resource not found"})
                    continue
                note("log", f"loaded {self.session}")
                self.say("what I said before")
                self.wire.answer(request, {})
            elif method == "session/prompt":
                self.prompt(request)
            elif "id" in request:
                self.wire.answer(request, error={"code": -32601, "message": "Method not found"})


def actions() -> list[list[Any]]:
    if isinstance(STUB.get("actions"), dict):
        return STUB["actions"]["{TENURE_STEP}.{TENURE_ATTEMPT}".format(**os.environ)]
    return STUB.get("actions", [])


def end(*_: object) -> None:
    note("ended", "SIGTERM")
    sys.exit(0)


def main() -> None:
    os.makedirs(HOME, exist_ok=True)
    note("starts", str(os.getpid()))
    signal.signal(signal.SIGTERM, end)
    Agent(Wire()).serve()


if __name__ == "__main__":
    main()
