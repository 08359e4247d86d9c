"""Which embedders there are: those that the installation was set up with, and no others.

An index remembers the name of its model only. Where the model is, and with which key, is the server's to know: an index lies in
a database that an agent may write, and must not be a way to make the server call anybody.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenure.data.query.search.embedder import Embedder
from tenure.data.query.search.hashing import HashingEmbedder
from tenure.errors import InvalidArgument
from tenure.settings import Settings


class Models:
    """By name. The first is what is taken when nobody asks for one."""

    def __init__(self, embedders: Sequence[Embedder] = ()) -> None:
        chosen = [*embedders, HashingEmbedder()]
        self._by_name = {one.name: one for one in chosen}

    @property
    def names(self) -> list[str]:
        return list(self._by_name)

    @classmethod
    def of(cls, settings: Settings) -> Models:
        """Those that the installation was set up with."""
        if settings.embeddings_model is None:
            return cls()
        from tenure.data.query.search.openai import OpenAiEmbedder  # an HTTP client takes a while to import

        return cls(
            [
                OpenAiEmbedder(
                    settings.embeddings_model,
                    settings.embeddings_url,
                    key_env=settings.embeddings_key_env,
                    dimensions=settings.embeddings_dimensions,
                )
            ]
        )

    def get(self, name: str | None = None) -> Embedder:
        """The one called so (`local` is short for the one that is always there). Raises `InvalidArgument`."""
        if name is None:
            return next(iter(self._by_name.values()))
        for known, embedder in self._by_name.items():
            if name in (known, known.partition(":")[0] if known.startswith("local:") else known):
                return embedder
        raise InvalidArgument(
            f"This server has no model {name[:100]!r} for search.",
            hint=f"It has {', '.join(self._by_name)}. TENURE_EMBEDDINGS_MODEL, _URL and _KEY_ENV set one up.",
        )

    async def close(self) -> None:
        for embedder in self._by_name.values():
            await embedder.close()
