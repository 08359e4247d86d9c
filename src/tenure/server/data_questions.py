"""Questions about a database as brains ask them, by name: the same as the routes of `tenure.server.api.data` answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue, ValidationError

from tenure.data.query.plane import DataPlane
from tenure.errors import InvalidArgument
from tenure.server.failures import from_validation
from tenure.wire import data


async def ask(
    plane: DataPlane, question: str, arguments: Mapping[str, JsonValue], *, key: str | None = None
) -> dict[str, Any]:
    """See `tenure.work.hands.Hands.ask_data`."""
    if question not in data.QUESTIONS:
        raise InvalidArgument(f"There is no question {question[:40]!r}.", hint=", ".join(data.QUESTIONS))
    asked, answered = data.QUESTIONS[question]
    try:
        wanted: Any = asked.model_validate(dict(arguments))
    except ValidationError as error:
        raise from_validation(error.errors(include_input=False, include_url=False, include_context=False)) from None
    found = await _answer(plane, question, wanted, key)
    return answered.model_validate(found, from_attributes=True).model_dump(mode="json")


async def _answer(plane: DataPlane, question: str, wanted: Any, key: str | None) -> Any:
    from tenure.server.api.data import shown

    said: dict[str, Any] = dict(wanted)
    match question:
        case "describe":
            return await plane.describe(**said)
        case "sample":
            return await plane.sample(said.pop("table"), **said)
        case "profile":
            return await plane.profile(said.pop("table"), **said)
        case "save_result":
            said.pop("key")
            return await plane.save_result(said.pop("name"), said.pop("query"), **said, key=key)
        case "list_results":
            return {"results": await plane.list_results()}
        case "read_result":
            return await plane.read_result(said.pop("name"), **said)
        case "create_index":
            return shown(await plane.create_index(**said))
        case "list_indexes":
            return {"indexes": [shown(one) for one in await plane.list_indexes()], "models": plane.models.names}
        case _:
            index, found = await plane.search(said.pop("query"), **said)
            return {"hits": found.hits, "index": index.name, "model": index.model, "pending": found.pending}
