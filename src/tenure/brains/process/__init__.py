"""The brain that is any program of the office, durable by its checkpoints. See `docs/programs.md`."""

from tenure.brains.process.program import ASK_EXIT_CODE, ProcessProgram

__all__ = ["ASK_EXIT_CODE", "ProcessProgram"]
