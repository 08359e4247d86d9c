"""Questions that runs have for people, approvals among them. Each is answered once, by whoever is first."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from tenure import wire
from tenure.names import check_name
from tenure.server.access import Caller, Has, of_own, of_question, requires
from tenure.server.checks import check_text

router = APIRouter(prefix="/v1/questions", tags=["questions"])

LIST_DEFAULT, LIST_MAX = 200, 500


@router.get("", response_model=wire.QuestionList, dependencies=[requires("question:read", of_own("question"))])
async def list_questions(
    has: Has, agent: str | None = None, limit: Annotated[int, Query(ge=1, le=LIST_MAX)] = LIST_DEFAULT
) -> Any:
    """Those that are open; the ones of the oldest run first."""
    if agent is not None:
        check_name(agent)
    return {"questions": await has.runs.questions(agent=agent, limit=limit)}


@router.post("/{question_id}/answer", response_model=wire.Run, dependencies=[requires("question:answer", of_question)])
async def answer_question(question_id: str, body: wire.AnswerRequest, has: Has, caller: Caller) -> Any:
    """Answers it, and lets the run go on; 409 when somebody was faster, says who, or it expired."""
    return await has.runs.answer(question_id, check_text("answer", body.answer), by=str(caller))
