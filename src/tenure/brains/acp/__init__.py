"""The brain that is a program of the office which speaks the Agent Client Protocol. See `docs/programs.md`."""

from tenure.brains.acp.program import AcpProgram

__all__ = ["AcpProgram"]
