"""The contract of what turns text into vectors. Kit: `tenure.testing.embedder_conformance`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

DIMENSION_MAX = 2000
"""What pgvector's index takes."""
TEXTS_MAX = 128
"""Of one call."""
TEXT_CHARS_MAX = 8000
"""Of a text that are looked at: about what models take."""


class Embedder(ABC):
    """Texts that mean alike are given vectors that point alike. All methods may be called at the same time."""

    @property
    @abstractmethod
    def name(self) -> str:
        """By which an index remembers what made its vectors: those of two names are never compared."""

    @abstractmethod
    async def dimension(self) -> int:
        """Numbers of each vector, always the same, at most `DIMENSION_MAX`. May ask the model once. Raises as `embed`."""

    @abstractmethod
    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """A vector of length 1 for each of at most `TEXTS_MAX` texts, in their order; of a text longer than `TEXT_CHARS_MAX`,
        of its beginning. An empty text has one, too. The same text gives the same vector, within the model's precision.
        Raises `ModelError` when it did not answer (retryable or not, as it says), `Unauthenticated` without a key."""

    @abstractmethod
    async def close(self) -> None:
        """Frees what it holds. Idempotent."""
