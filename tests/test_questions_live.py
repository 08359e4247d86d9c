"""A question on the real parts: the office sleeps while a person is asked, and the answer outlives the server."""

from __future__ import annotations

import pytest

from fixtures.live import Live
from tenure import wire
from tenure.errors import Conflict

PLAYBOOK = """
name: leave
steps:
  - {id: before, run: echo before >> ~/effects}
  - {id: pay, needs: before, run: echo pay >> ~/effects, approve: {text: "May it pay?"}}
"""
RUN_WAIT_S = 120.0


def test_the_office_sleeps_while_a_person_is_asked_and_the_answer_outlives_the_server(live: Live) -> None:
    agent = live.agent("asker")
    run = agent.run("pay", playbook=PLAYBOOK).wait(RUN_WAIT_S)
    assert run.state is wire.RunState.PARKED
    (question,) = live.tenure.questions.list(agent.name)
    assert (question.text, question.evidence, question.run) == ("May it pay?", "echo pay >> ~/effects", run.id)
    assert agent.sleep().state is wire.AgentState.STOPPED
    with pytest.raises(Conflict, match=question.id):
        run.resume("retry")
    assert agent.show().state is wire.AgentState.STOPPED, "nothing of the run woke it"
    live.tenure.questions.answer(question.id, "yes")
    live.kill()
    live.up()
    with pytest.raises(Conflict, match="answered already, by owner: yes"):
        live.tenure.questions.answer(question.id, "no")
    assert live.tenure.runs.get(run.id).wait(RUN_WAIT_S).state is wire.RunState.SUCCEEDED
    assert agent.exec("cat ~/effects").stdout == "before\npay\n"
    agent.delete()
