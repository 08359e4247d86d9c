"""What a program may ask of us while it works: its files, its terminals, permissions; and what it tells."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from acp import schema
from acp.exceptions import RequestError
from pydantic import BaseModel, JsonValue, ValidationError

from tenure.brains.acp import files, permissions
from tenure.brains.acp.digest import Digest
from tenure.brains.acp.terminals import Terminals
from tenure.brains.base import Errand
from tenure.errors import LeaseLost, NotFound, TenureError
from tenure.faultpoints import reach
from tenure.work.failures import is_definite
from tenure.work.thoughts import Question

Answer = dict[str, Any] | None
_PARAMS: dict[str, type[BaseModel]] = {
    "fs/read_text_file": schema.ReadTextFileRequest,
    "fs/write_text_file": schema.WriteTextFileRequest,
    "terminal/create": schema.CreateTerminalRequest,
    "terminal/output": schema.TerminalOutputRequest,
    "terminal/wait_for_exit": schema.WaitForTerminalExitRequest,
    "terminal/kill": schema.KillTerminalRequest,
    "terminal/release": schema.ReleaseTerminalRequest,
    "session/request_permission": schema.RequestPermissionRequest,
}


class Client:
    """Answers one program. `stop` is set to what ends the conversation: a question for a person, or an error of the office."""

    def __init__(
        self,
        errand: Errand,
        terminals: Terminals,
        program: str,
        question_id: Callable[[], str],
        report: Callable[[str, JsonValue], Awaitable[None]],
        done: Callable[[], None],
    ) -> None:
        self._errand, self._terminals, self._program = errand, terminals, program
        self._question_id, self._report, self._done = question_id, report, done
        self._turn = asyncio.Lock()
        self._used = permissions.used_up(errand.reports)
        self.digest = Digest()
        self.replaying = False
        """While a session is loaded, it tells what it told before."""
        self._over = asyncio.Event()
        self.stop: asyncio.Future[Question] = asyncio.get_running_loop().create_future()
        self.stop.add_done_callback(_look_at)

    def end(self) -> None:
        """Nothing is done for the program any more."""
        self._over.set()

    async def handle(self, method: str, params: Any, is_notification: bool) -> Answer:
        """As the library calls it. Raises `RequestError`, which the program is answered with."""
        try:
            if is_notification:
                if method == "session/update" and not self.replaying:
                    self._hear(params)
                return None
            if method not in _PARAMS:
                raise RequestError.method_not_found(method)
            if self._over.is_set() or self.stop.done():
                raise RequestError(-32603, "You are being ended.")
            return await self._answer(method, _PARAMS[method].model_validate(params))
        except (RequestError, ValidationError):
            raise
        except TenureError as error:
            if isinstance(error, LeaseLost) or not is_definite(error):
                self._end(error)
            raise _told(error) from error
        except Exception as error:
            self._end(error)
            raise RequestError.internal_error() from error
        finally:
            self._done()

    def _end(self, error: Exception) -> None:
        if not self.stop.done():
            self.stop.set_exception(error)

    def _hear(self, params: Any) -> None:
        update: Any = cast("dict[str, Any]", params).get("update") if isinstance(params, dict) else None
        if isinstance(update, dict):
            self.digest.hear(cast("dict[str, Any]", update))

    async def _answer(self, method: str, request: BaseModel) -> Answer:
        asked = request.model_dump(mode="json", by_alias=True, exclude_none=True)
        hands, agent = self._errand.hands, self._errand.agent
        match method:
            case "fs/read_text_file":
                text = await files.read_text(hands, agent, asked["path"], asked.get("line"), asked.get("limit"))
                return {"content": text}
            case "fs/write_text_file":
                await files.write_text(hands, agent, asked["path"], asked["content"])
                return {}
            case "terminal/create":
                return {"terminalId": await self._terminals.create(asked)}
            case "terminal/output":
                return await self._terminals.output(asked["terminalId"])
            case "terminal/wait_for_exit":
                return await self._terminals.wait(asked["terminalId"])
            case "terminal/kill":
                await self._terminals.kill(asked["terminalId"])
                return {}
            case "terminal/release":
                await self._terminals.release(asked["terminalId"])
                return {}
            case _:
                async with self._turn:
                    return {"outcome": await self._permit(asked)}

    async def _permit(self, asked: dict[str, Any]) -> dict[str, Any]:
        tool = self.digest.hear_tool(asked["toolCall"])
        options: list[dict[str, Any]] = asked["options"]
        if not permissions.needs_person(self._errand.settings.approve, tool):
            return permissions.choice(options, allow=True)
        found = permissions.answered(self._errand.reports, self._errand.answers, self._used, tool)
        if found is None:
            return await self._ask(tool)
        question, answer = found
        allow = permissions.is_yes(answer)
        if allow:
            # Before it may act: after a crash the answer counts as used, and the person is asked again.
            self._used.add(question)
            reach("acp.allowed.before")
            await self._report("allowed", {"question": question})
            reach("acp.allowed.after")
        return permissions.choice(options, allow=allow)

    async def _ask(self, tool: dict[str, Any]) -> dict[str, Any]:
        question = permissions.question_of(self._question_id(), self._program, tool)
        reach("acp.asked.before")
        await self._report(
            "asked",
            {
                "key": self._errand.key,
                "mark": permissions.fingerprint(tool),
                "question": question.model_dump(mode="json"),
            },
        )
        reach("acp.asked.after")
        if not self.stop.done():
            self.stop.set_result(question)
        await self._over.wait()  # it asks again when it goes on
        return {"outcome": "cancelled"}


def _told(error: TenureError) -> RequestError:
    """In words by which programs know a file that is not there from one that cannot be read."""
    if isinstance(error, NotFound):
        return RequestError(-32002, f"Resource not found: {error.message} (ENOENT)")
    return RequestError(-32603, error.message, {"hint": error.hint})


def _look_at(stop: asyncio.Future[Question]) -> None:
    """So that asyncio does not complain of an error that came when all was over."""
    if not stop.cancelled():
        stop.exception()
