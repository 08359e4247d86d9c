"""One start of a program that speaks the Agent Client Protocol, from `initialize` to its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import PurePosixPath
from typing import Any, NoReturn, TypeVar

from acp import schema
from acp.connection import Connection
from acp.exceptions import RequestError
from acp.meta import PROTOCOL_VERSION
from pydantic import BaseModel, JsonValue, ValidationError

from tenure import __version__
from tenure.brains import errands
from tenure.brains.acp import prompts
from tenure.brains.acp.client import Client
from tenure.brains.acp.program import start_prefix
from tenure.brains.acp.terminals import Terminals
from tenure.brains.acp.transport import Transport
from tenure.brains.base import Errand, Report
from tenure.brains.errands import Reporting, Spending
from tenure.errors import TenureError
from tenure.work.effects import Asks, Blocked, Done, Failed, Outcome
from tenure.work.events import Result
from tenure.work.failures import EVIDENCE_BYTES_MAX, Failure, FailureClass, tail
from tenure.work.hands import OpenProgram
from tenure.work.thoughts import Question

M = TypeVar("M", bound=BaseModel)

HANDSHAKE_S = 180.0
"""For each answer before it works: a program may first have to fetch itself."""
REPORT_S = 2.0
"""Between two reports, in the beginning."""
CANCEL_S = 3.0
"""For the program to end what it does when it is told to."""
EXIT_S = 3.0
"""For it to exit when it is told to; then it is killed."""
END_S = 10.0
AUTH_REQUIRED = -32000
NOT_FOUND_EXITS = (126, 127)
_STOPS = {
    "max_tokens": (FailureClass.CONTEXT, "It reached its limit of tokens before it was done."),
    "max_turn_requests": (FailureClass.STUCK, "It reached its limit of requests to its model before it was done."),
    "refusal": (FailureClass.MODEL, "It refused to go on."),
    "cancelled": (FailureClass.COMMAND, "It says that it was cancelled, though nobody did that."),
}


class Ended(Exception):
    """The conversation is over, with this failure."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Conversation:
    def __init__(self, errand: Errand, number: int, mcp_url: str) -> None:
        self._errand, self._number, self._mcp_url = errand, number, mcp_url
        self._command = errand.settings.command
        self._name = PurePosixPath(self._command[0]).name
        self._reporting = Reporting(errand, REPORT_S)
        self._questions = 0
        self._session = ""

    async def to_end(self) -> Outcome:
        """Raises what `Hands` and `report` raise; whatever happens, nothing of it runs after."""
        env = errands.environment(self._errand)
        # The shell says where it is, since the protocol wants an absolute path, and becomes the program.
        argv = ("sh", "-c", 'pwd && exec "$@"', "sh", *self._command)
        program = await self._errand.hands.open_program(self._errand.agent, argv, env=env)
        prefix = start_prefix(self._errand.key, self._number)
        terminals = Terminals(self._errand.hands, self._errand.agent, prefix, self._errand.settings.env)
        transport = Transport(program)
        client = Client(
            self._errand, terminals, self._name, self._question_id, self._reporting.must_tell, transport.done
        )
        connection: Connection | None = None
        try:
            home = await self._home(transport)
            connection = Connection(client.handle, transport)
            return await self._converse(connection, transport, client, terminals, home)
        except Ended as ended:
            if ended.failure.kind is FailureClass.BUDGET:
                return Blocked(ended.failure)
            return Failed(ended.failure, Result(output=client.digest.message))
        finally:
            client.end()
            await asyncio.shield(self._end(program, connection, terminals))

    def _question_id(self) -> str:
        self._questions += 1
        return f"{start_prefix(self._errand.key, self._number)}.q{self._questions}"

    # --- the way of it -----------------------------------------------------------------------------------------------
    async def _converse(
        self, connection: Connection, transport: Transport, client: Client, terminals: Terminals, home: str
    ) -> Outcome:
        can = await self._initialize(connection, transport)
        prompt = await self._enter_session(connection, transport, client, can, home)
        spending = Spending(self._errand, self._reporting, self._session)
        asked = {"sessionId": self._session, "prompt": [{"type": "text", "text": prompt}]}
        answering = asyncio.create_task(connection.send_request("session/prompt", asked))
        try:
            question = await self._attend(answering, transport, client, terminals, spending)
        finally:
            client.end()
            if not answering.done():
                await self._cancel(connection, answering)
            with contextlib.suppress(asyncio.CancelledError):
                answering.exception()  # looked at, so that asyncio does not complain of it
        if question is not None:
            await spending.tell(client.digest.spent)
            return Asks(question)
        try:
            answer = await self._checked(answering, transport, schema.PromptResponse)
        except Ended:
            await spending.tell(client.digest.spent)
            raise
        return await self._outcome(answer, transport, client, spending)

    async def _home(self, transport: Transport) -> str:
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                line = await transport.line()
        except TimeoutError:
            self._fail(FailureClass.TIMEOUT, f"The program did not start within {HANDSHAKE_S:g} s.", transport)
        if line is None:
            self._fail_ended(transport)
        return line.decode("utf-8", "replace")

    async def _initialize(self, connection: Connection, transport: Transport) -> schema.AgentCapabilities:
        told = {
            "protocolVersion": PROTOCOL_VERSION,
            # It reads by itself, for its files are the same; a client's files that are not there confuse some programs.
            "clientCapabilities": {"fs": {"readTextFile": False, "writeTextFile": True}, "terminal": True},
            "clientInfo": {"name": "tenure", "version": __version__},
        }
        answer = await self._ask(connection, transport, "initialize", told, schema.InitializeResponse)
        if answer.protocol_version != PROTOCOL_VERSION:
            self._fail(
                FailureClass.USAGE,
                f"It speaks version {answer.protocol_version} of the Agent Client Protocol, not {PROTOCOL_VERSION}. "
                "Install another release of it.",
                transport,
            )
        self._methods = [method.name for method in answer.auth_methods or ()]
        return answer.agent_capabilities or schema.AgentCapabilities()

    _methods: list[str]

    async def _enter_session(
        self, connection: Connection, transport: Transport, client: Client, can: schema.AgentCapabilities, home: str
    ) -> str:
        """Loads the latest session, or begins one; what to say in it."""
        where: dict[str, Any] = {"cwd": home, "mcpServers": []}
        if can.mcp_capabilities is not None and can.mcp_capabilities.http:
            where["mcpServers"] = [{"type": "http", "name": "tenure", "url": self._mcp_url, "headers": []}]
        earlier, forgot = _session_of(self._errand.reports), ""
        if earlier and can.load_session:
            client.replaying = True
            try:
                await self._request(connection, transport, "session/load", {"sessionId": earlier, **where})
                self._session = earlier
                return prompts.further(self._errand, interrupted=self._number > 0)
            except RequestError as error:
                self._check_login(error, transport)
                forgot = _words(error)[:500]
            finally:
                client.replaying = False
        answer = await self._ask(connection, transport, "session/new", where, schema.NewSessionResponse)
        self._session = answer.session_id
        told: dict[str, JsonValue] = {
            "key": self._errand.key,
            "id": self._session,
            "loads": bool(can.load_session),
        }
        if forgot:
            told |= {"instead_of": earlier, "because": forgot}
        await self._reporting.must_tell("session", told)
        return prompts.first(self._errand, interrupted=bool(self._number or _was_active(self._errand.reports)))

    async def _attend(
        self,
        answering: asyncio.Task[Any],
        transport: Transport,
        client: Client,
        terminals: Terminals,
        spending: Spending,
    ) -> Question | None:
        """Waits for the answer to the prompt, and reports meanwhile. A question for a person, if that comes first."""
        timeout_s, heard_s = self._errand.timeout_s, time.monotonic()
        while True:
            now_s = time.monotonic()
            heard_s = now_s if terminals.waiting else max(heard_s, transport.heard_s)
            left_s = heard_s + timeout_s - now_s
            if left_s <= 0:
                self._fail(FailureClass.TIMEOUT, f"It was silent for {timeout_s:g} s, and was ended.", transport)
            await asyncio.wait(
                {answering, client.stop}, timeout=min(left_s, REPORT_S), return_when=asyncio.FIRST_COMPLETED
            )
            await self._report(client, spending, last=answering.done() or client.stop.done())
            if client.stop.done():
                return client.stop.result()
            if answering.done():
                return None

    async def _report(self, client: Client, spending: Spending, *, last: bool) -> None:
        """Ends a program that has spent the budget, unless it was the `last` of it."""
        now_s = time.monotonic()
        if not (last or self._reporting.is_due(now_s)):
            return
        if (news := client.digest.take()) is not None:
            await self._reporting.tell("activity", news, now_s)
        if not last and await spending.tell(client.digest.spent, **client.digest.context):
            failure = await self._errand.over_budget()
            if failure is not None:
                raise Ended(failure)

    async def _outcome(
        self, answer: schema.PromptResponse, transport: Transport, client: Client, spending: Spending
    ) -> Outcome:
        spent = dict[str, JsonValue](client.digest.spent)
        if answer.usage is not None:
            spent |= {"input_tokens": answer.usage.input_tokens, "output_tokens": answer.usage.output_tokens}
        await spending.tell(spent, **client.digest.context)
        message = client.digest.message.strip()
        if answer.stop_reason in _STOPS:
            kind, text = _STOPS[answer.stop_reason]
            self._fail(kind, text, transport, message)
        return Done(Result(output=message, output_bytes=len(message.encode("utf-8", "replace")), exit_code=0))

    # --- asking it ---------------------------------------------------------------------------------------------------
    async def _ask(
        self, connection: Connection, transport: Transport, method: str, params: dict[str, Any], model: type[M]
    ) -> M:
        try:
            answering = asyncio.ensure_future(self._request(connection, transport, method, params))
            return await self._checked(answering, transport, model)
        except RequestError as error:
            self._refused(error, transport)

    async def _request(self, connection: Connection, transport: Transport, method: str, params: dict[str, Any]) -> Any:
        """Its answer. Raises `RequestError`, `Ended`."""
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                return await connection.send_request(method, params)
        except TimeoutError:
            self._fail(FailureClass.TIMEOUT, f"It did not answer {method} within {HANDSHAKE_S:g} s.", transport)
        except ConnectionError:
            self._fail_ended(transport)

    async def _checked(self, answering: asyncio.Future[Any], transport: Transport, model: type[M]) -> M:
        try:
            return model.model_validate(await answering)
        except RequestError as error:
            self._refused(error, transport)
        except ConnectionError:
            self._fail_ended(transport)
        except ValidationError as error:
            self._fail(FailureClass.COMMAND, f"Its answer makes no sense: {str(error)[:500]}", transport)

    async def _cancel(self, connection: Connection, answering: asyncio.Task[Any]) -> None:
        """Tells it to end what it does, and gives it a moment."""
        with contextlib.suppress(TimeoutError, ConnectionError, TenureError, asyncio.CancelledError):
            async with asyncio.timeout(CANCEL_S):
                await connection.send_notification("session/cancel", {"sessionId": self._session})
                await asyncio.wait({answering})
        answering.cancel()
        await asyncio.wait({answering})

    async def _end(self, program: OpenProgram, connection: Connection | None, terminals: Terminals) -> None:
        """Nothing of it runs after this, but for commands that an office does not end when it is asked to. It is given a moment
        to write down its session."""
        if connection is not None:
            await connection.close()
        for number, wait_s in ((signal.SIGTERM, EXIT_S), (signal.SIGKILL, END_S)):
            with contextlib.suppress(TenureError, TimeoutError):
                async with asyncio.timeout(wait_s):
                    await program.signal(number)
                    while await program.receive() is not None:
                        pass
                break
        await program.close()
        with contextlib.suppress(TenureError, TimeoutError):  # the next worker ends what is left
            async with asyncio.timeout(END_S):
                await terminals.end()

    # --- failing -----------------------------------------------------------------------------------------------------
    def _fail(self, kind: FailureClass, message: str, transport: Transport, said: str = "") -> NoReturn:
        evidence = tail("\n".join(part for part in (said, transport.evidence) if part), EVIDENCE_BYTES_MAX)
        raise Ended(
            Failure(kind=kind, message=f"{self._name}: {message}", evidence=evidence, exit_code=transport.exit_code)
        )

    def _fail_ended(self, transport: Transport) -> NoReturn:
        """The connection is gone: by an error of the office, by what it said, or because it ended."""
        if isinstance(transport.error, TenureError):
            raise transport.error
        if transport.error is not None:
            self._fail(FailureClass.COMMAND, str(transport.error), transport)
        if transport.exit_code in NOT_FOUND_EXITS:
            message = "It cannot be started. Install it in the office, or correct the agent's `command`."
            self._fail(FailureClass.COMMAND, message, transport)
        self._fail(FailureClass.COMMAND, f"It exited with {transport.exit_code} before it was done.", transport)

    def _check_login(self, error: RequestError, transport: Transport) -> None:
        if error.code != AUTH_REQUIRED:
            return
        ways = f" ({', '.join(self._methods)})" if self._methods else ""
        self._fail(
            FailureClass.AUTHENTICATION,
            f"It wants a login{ways}. Log in once in the office (`tenure shell {self._errand.agent}`, then its own login "
            "command), or give the agent the environment variable that it reads.",
            transport,
            str(error),
        )

    def _refused(self, error: RequestError, transport: Transport) -> NoReturn:
        self._check_login(error, transport)
        self._fail(FailureClass.MODEL, f"It answered with an error: {_words(error)[:1000]}", transport)


def _words(error: RequestError) -> str:
    return f"{error} {error.data if error.data is not None else ''}".strip()


def _session_of(reports: tuple[Report, ...]) -> str:
    """The latest one that can be loaded."""
    for report in reversed(reports):
        if report.what == "session" and isinstance(report.data, dict):
            return str(report.data["id"]) if report.data["loads"] else ""
    return ""


def _was_active(reports: tuple[Report, ...]) -> bool:
    return any(report.what in ("session", "activity") for report in reports)
