"""Embeddings of any server that speaks OpenAI's protocol (`POST …/embeddings`): OpenAI itself, Ollama, vLLM, llama.cpp."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import httpx

from tenure.data.query.search.embedder import DIMENSION_MAX, TEXT_CHARS_MAX, TEXTS_MAX, Embedder
from tenure.errors import InvalidArgument, ModelError, Unauthenticated

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
TIMEOUT_S = 60.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024
REASON_CHARS_MAX = 300
EMPTY = " "
"""Sent for an empty text, which servers refuse."""


class OpenAiEmbedder(Embedder):
    """`key_env` names the variable of the server's environment that the key is in; without one, and with a `url`, none is
    sent: OpenAI's key never goes to somebody else's server. `dimensions` asks the model for shorter vectors."""

    def __init__(
        self,
        model: str,
        url: str | None = None,
        *,
        key_env: str | None = None,
        dimensions: int | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._model, self._url = model, (url or OPENAI_URL).rstrip("/")
        self._key_env = key_env or (OPENAI_KEY if url is None else None)
        self._wanted, self._environ = dimensions, environ
        self._dimension: int | None = None
        self._asking = asyncio.Lock()
        self._client: httpx.AsyncClient | None = None

    @property
    def name(self) -> str:
        return f"openai:{self._model}" + (f":{self._wanted}" if self._wanted else "")

    async def dimension(self) -> int:
        async with self._asking:
            if self._dimension is None:
                self._dimension = len((await self._ask([EMPTY]))[0])
        if self._dimension > DIMENSION_MAX:
            raise InvalidArgument(
                f"Vectors of {self._model} have {self._dimension} numbers; an index takes {DIMENSION_MAX}.",
                hint="Ask the model for fewer (TENURE_EMBEDDINGS_DIMENSIONS), or use another one.",
            )
        return self._dimension

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        if len(texts) > TEXTS_MAX:
            raise InvalidArgument(f"At most {TEXTS_MAX} texts are embedded at once.")
        if not texts:
            return []
        dimension = await self.dimension()
        found = await self._ask([text[:TEXT_CHARS_MAX] or EMPTY for text in texts])
        if any(len(vector) != dimension for vector in found):
            raise ModelError(f"{self._model} answered with vectors of different lengths.")
        return [_unit(vector) for vector in found]

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _headers(self) -> dict[str, str]:
        if self._key_env is None:
            return {}
        key = self._environ.get(self._key_env, "").strip()
        if not key:
            raise Unauthenticated(
                f"There is no key for {self._model}: the server has no variable {self._key_env}.",
                hint=f"Start the server with {self._key_env} set.",
            )
        return {"Authorization": f"Bearer {key}"}

    async def _ask(self, texts: list[str]) -> list[list[float]]:
        if self._client is None:
            # A connection that is kept may be closed by the server just when the next request goes out on it.
            limits = httpx.Limits(max_keepalive_connections=0)
            self._client = httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, follow_redirects=False, trust_env=False)
        body: dict[str, Any] = {"model": self._model, "input": texts, "encoding_format": "float"}
        if self._wanted:
            body["dimensions"] = self._wanted
        try:
            answer = await self._client.post(f"{self._url}/embeddings", json=body, headers=self._headers())
        except httpx.HTTPError as error:
            raise ModelError(f"{self._model} at {self._url} did not answer: {type(error).__name__}.") from None
        if answer.status_code != 200:
            raise _refusal(self._model, answer)
        try:
            return _vectors(answer.json(), len(texts))
        except (ValueError, KeyError, TypeError):
            raise ModelError(f"{self._model} at {self._url} answered with what is no list of vectors.") from None


def _vectors(body: Any, count: int) -> list[list[float]]:
    """Raises `ValueError`, `KeyError`, `TypeError`."""
    data = sorted(cast("list[dict[str, Any]]", body["data"]), key=lambda one: one["index"])
    found = [[float(value) for value in one["embedding"]] for one in data]
    if [one["index"] for one in data] != list(range(count)) or not all(found):
        raise ValueError("as many vectors as texts were expected")
    if not all(math.isfinite(value) for vector in found for value in vector):
        raise ValueError("a number of a vector is none")
    return found


def _refusal(model: str, answer: httpx.Response) -> ModelError | Unauthenticated | InvalidArgument:
    try:
        said = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = answer.text
    reason = " ".join(said.split())[:REASON_CHARS_MAX]
    match answer.status_code:
        case 401 | 403:  # what it says may have the key in it
            return Unauthenticated(f"The server of {model} does not take the key.", hint="Look at its variable.")
        case 408 | 409 | 429:
            return ModelError(f"{model} is busy: {reason}")
        case status if status < 500:
            return InvalidArgument(f"{model} refused: {reason}")
        case status:
            return ModelError(f"{model} answered {status}: {reason}")


def _unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector] if length else [1.0, *vector[1:]]
