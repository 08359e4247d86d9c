"""The brain that asks a language model, of any provider that pydantic-ai knows. One thought is one request; it keeps nothing.

The library is imported at the first thought: a server or a command that asks no model never pays for it.
"""

from tenure.brains.models.brain import ModelBrain

__all__ = ["ModelBrain"]
