"""Which brain the settings of an agent mean. Libraries are imported by the brain that needs them, when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tenure.brains.base import Brain, Program, Thinker
from tenure.brains.models import providers
from tenure.errors import UsageError
from tenure.work.goals import first_plan
from tenure.work.plan import Plan
from tenure.work.thoughts import BrainSettings

MODELS, ACP, PROCESS = "pydantic_ai", "acp", "process"
BRAINS = (MODELS, ACP, PROCESS)


@dataclass(frozen=True)
class _Programmed:
    """A program's `Brain`: the whole work is one step, which the program does."""

    settings: BrainSettings

    @property
    def name(self) -> str:
        return self.settings.brain

    def plan(self, goal: str, inputs: Mapping[str, Any]) -> Plan:
        return first_plan(self.settings, goal, ()).model_copy(update={"inputs": dict(inputs)})


def brain_named(settings: BrainSettings) -> Brain:
    """Raises `UsageError` for a name that no brain has."""
    if settings.brain == MODELS:
        from tenure.brains.models import ModelBrain

        return ModelBrain()
    _known(settings)
    return _Programmed(settings)


def thinker_of(settings: BrainSettings) -> Thinker | None:
    """None for a program. Raises `UsageError` for a name that no brain has."""
    if settings.brain == MODELS:
        from tenure.brains.models import ModelBrain

        return ModelBrain()
    _known(settings)
    return None


def program_of(settings: BrainSettings) -> Program | None:
    """None for a brain that thinks. Raises `UsageError` for a name that no brain has."""
    _known(settings)
    match settings.brain:
        case "acp":
            from tenure.brains.acp import AcpProgram

            return AcpProgram()
        case "process":
            from tenure.brains.process import ProcessProgram

            return ProcessProgram()
        case _:
            return None


def check_settings(settings: BrainSettings) -> BrainSettings:
    """`settings`, when they can mean something. Raises `UsageError`."""
    _known(settings)
    for model in settings.models:
        providers.check_model_name(model)
    providers.check_model_settings(settings.model_settings)
    if settings.key_env is not None:
        providers.check_key_env(settings.key_env)
    if settings.base_url is not None:
        providers.check_base_url(settings.base_url)
    if settings.brain == MODELS and not settings.models:
        raise UsageError("A brain that asks a model needs one.", hint="Such as --model openai:MODEL.")
    if settings.brain != MODELS and not settings.command:
        raise UsageError(
            f"The brain {settings.brain} is a program of the office, and needs its command.",
            hint="Such as --command 'claude-code-acp'.",
        )
    return settings


def _known(settings: BrainSettings) -> None:
    if settings.brain not in BRAINS:
        raise UsageError(f"There is no brain {settings.brain!r}.", hint=f"There are {', '.join(BRAINS)}.")
