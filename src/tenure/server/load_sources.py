"""Where loads get files from, as far as whoever asks may read them.

A page of the web is fetched through the same proxy, with the same rules, as the agent's own requests; for a shared database, by
its owner's word, that host alone may be reached. Objects are the agent's own; a bucket elsewhere is read with the server's
credentials, for the owner only: they are not the agent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import ssl
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urljoin, urlsplit

from tenure.data.ingestion.record import Target
from tenure.data.ingestion.sources import Found, Listed
from tenure.errors import EgressDenied, EgressUnreachable, Forbidden, InvalidArgument, NotFound, StorageError
from tenure.identity.authorize import Principal, PrincipalKind, Resource, authorize
from tenure.postgres.client import Connection
from tenure.secrets.egress.dial import Dialer
from tenure.secrets.egress.presets import Preset
from tenure.secrets.egress.proxy import Decision, EgressProxy
from tenure.secrets.egress.rules import normalise_host
from tenure.server.checks import check_path

REDIRECTS_MAX = 5
FETCH_SILENCE_S = 60.0
CHUNK_BYTES = 256 * 1024
FILE_BYTES_MAX = 16 * 1024**3
LISTED_MAX = 10_000
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
OFFICE = "office:"


class _Stored(Protocol):
    @property
    def info(self) -> Any: ...
    def chunks(self) -> AsyncIterator[bytes]: ...


class Objects(Protocol):
    """An agent's own."""

    async def list(self, bucket: str | None = None, prefix: str = "", *, limit: int = 1000) -> Sequence[Any]: ...
    async def open(self, bucket: str, name: str) -> _Stored: ...
    async def buckets(self) -> Sequence[str]: ...


class Offices(Protocol):
    async def objects(self, name: str) -> Objects: ...
    async def egress_of(self, name: str) -> Sequence[str]: ...


ReadFile = Callable[[str, str], Awaitable[AsyncIterator[bytes]]]
"""Of an agent's office, by path."""


class LoadOffices:
    """Of the real ones, what loads need."""

    def __init__(self, offices: _RealOffices) -> None:
        self._offices = offices

    async def objects(self, name: str) -> Objects:
        return await self._offices.objects(name)

    async def egress_of(self, name: str) -> Sequence[str]:
        return (await self._offices.office(name)).record.egress


class _RealOffices(Protocol):
    async def objects(self, name: str) -> Any: ...
    async def office(self, name: str) -> Any: ...


@dataclass(frozen=True)
class SharedSessions:
    """A shared database as what loads go into, as its owner."""

    databases: _Databases
    name: str

    def session(self, timeout_s: float) -> contextlib.AbstractAsyncContextManager[Connection]:
        return self.databases.connection(self.name, timeout_s)


class _Databases(Protocol):
    def connection(self, name: str, timeout_s: float = ...) -> contextlib.AbstractAsyncContextManager[Connection]: ...


class LoadSources:
    """`read_file(agent, path)` streams a file of an office; `tell` is told of every decision about the web."""

    def __init__(
        self,
        offices: Offices,
        presets: Mapping[str, Preset],
        read_file: ReadFile,
        tell: Callable[[str, Decision], None],
        *,
        new_dialer: Callable[[], Dialer] = Dialer,
    ) -> None:
        self._offices, self._presets, self._read_file, self._tell = offices, presets, read_file, tell
        self._new_dialer = new_dialer

    def check(self, target: Target, source: str) -> None:
        if source.startswith(("http://", "https://")):
            _host_of(source)
        elif source.startswith("s3://"):
            _place_of(source)
        elif source.startswith(OFFICE):
            check_path(source.removeprefix(OFFICE))
            if not target.agent:
                raise InvalidArgument("A shared database has no office whose files could be loaded.")
        else:
            raise InvalidArgument(
                f"{source[:100]!r} is no address of a file.",
                hint="Write http(s)://…, s3://bucket/key, or office:path for a file of the agent's office.",
            )

    @contextlib.asynccontextmanager
    async def open(self, target: Target, source: str, by: Principal) -> AsyncGenerator[Found]:
        if source.startswith("s3://"):
            async with self._object(target, source, by) as found:
                yield found
        elif source.startswith(OFFICE):
            path = source.removeprefix(OFFICE)
            yield Found(path.rpartition("/")[2], await self._read_file(target.agent, path))
        else:
            async with self._page(target, source) as found:
                yield found

    async def list(self, target: Target, source: str, by: Principal) -> Sequence[Listed]:
        if not source.startswith("s3://"):
            return [Listed(source, "")]
        bucket, key = _place_of(source)
        if await self._is_own(target, bucket):
            store = await self._offices.objects(target.agent)
            found = await store.list(bucket, key, limit=LISTED_MAX)
            return [Listed(f"s3://{bucket}/{one.name}", str(one.sha256)) for one in found if _below(key, one.name)]
        self._refuse_elsewhere(source, by)
        return await asyncio.to_thread(_listed_elsewhere, source)

    # --- objects ------------------------------------------------------------------------------------------------------
    async def _is_own(self, target: Target, bucket: str) -> bool:
        if not target.agent:
            return False
        return bucket in await (await self._offices.objects(target.agent)).buckets()

    @contextlib.asynccontextmanager
    async def _object(self, target: Target, source: str, by: Principal) -> AsyncGenerator[Found]:
        bucket, key = _place_of(source)
        name = key.rpartition("/")[2]
        if await self._is_own(target, bucket):
            authorize(by, "object:read", Resource("object", owner=target.agent, name=f"{bucket}/{key}"))
            found = await (await self._offices.objects(target.agent)).open(bucket, key)
            yield Found(name, found.chunks(), str(found.info.sha256))
            return
        self._refuse_elsewhere(source, by)
        from tenure.offices.archives import s3

        place = s3.parse_place(source)
        reader = await asyncio.to_thread(s3.Reader, place)
        yield Found(name, _read(reader))

    def _refuse_elsewhere(self, source: str, by: Principal) -> None:
        if by.kind is not PrincipalKind.OWNER:
            raise Forbidden(
                f"There is no bucket of one's own for {source[:200]}.",
                hint="A bucket elsewhere is read with the server's credentials, which only its owner may use.",
            )

    # --- the web ------------------------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def _page(self, target: Target, source: str) -> AsyncGenerator[Found]:
        entries = await self._offices.egress_of(target.agent) if target.agent else [_host_of(source)]
        name = target.agent or "database"

        def tell(decision: Decision) -> None:
            self._tell(target.agent, decision)

        proxy = EgressProxy(name, entries, self._presets, on_decision=tell, dialer=self._new_dialer())
        with tempfile.TemporaryDirectory(prefix="tenure-fetch-") as place:
            socket = Path(place) / "egress.sock"
            await proxy.serve(socket)
            try:
                async with _fetched(source, socket) as (url, headers, chunks):
                    yield Found(_name_of(url, headers), chunks, _version_of(headers))
            finally:
                await proxy.close()


@contextlib.asynccontextmanager
async def _fetched(url: str, socket: Path) -> AsyncGenerator[tuple[str, Mapping[str, str], AsyncIterator[bytes]]]:
    """Follows redirects: each is a request of its own, which the proxy decides about. Raises `EgressDenied`,
    `EgressUnreachable`, `NotFound`."""
    import httpcore

    class Backend(httpcore.AsyncNetworkBackend):
        """Every connection goes to the proxy's socket."""

        def __init__(self) -> None:
            self._inner: Any = httpcore.AnyIOBackend()

        async def connect_tcp(self, *_: Any, **__: Any) -> Any:
            return await self._inner.connect_unix_socket(str(socket))

        async def connect_unix_socket(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(seconds)

    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), FETCH_SILENCE_S)
    pool = httpcore.AsyncHTTPProxy(
        "http://egress:3128", ssl_context=ssl.create_default_context(), network_backend=Backend()
    )
    async with pool:
        for _ in range(REDIRECTS_MAX + 1):
            try:
                async with pool.stream("GET", url, headers=_HEADERS, extensions={"timeout": timeouts}) as answer:
                    headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in answer.headers}
                    if answer.status in _REDIRECTS and "location" in headers:
                        url = urljoin(url, headers["location"])
                        _host_of(url)
                        continue
                    await _check_status(url, answer)
                    yield url, headers, _whole(answer, headers)
                    return
            except httpcore.ProxyError as error:
                raise _refused(url, str(error)) from error
            except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
                raise EgressUnreachable(f"{url[:200]} broke off: {str(error) or type(error).__name__}.") from error
        raise EgressUnreachable(f"{url[:200]} leads on and on.")


_HEADERS: Any = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "tenure"}


async def _check_status(url: str, answer: Any) -> None:
    if answer.status == 200:
        return
    said = b""
    async for piece in answer.aiter_stream():
        said += piece
        if len(said) > 2000:
            break
    text = " ".join(said[:300].decode("utf-8", "replace").split())
    if answer.status == 403 and "Agent " in text:
        raise EgressDenied(text)
    if answer.status in (404, 410):
        raise NotFound(f"There is nothing at {url[:200]}.")
    raise EgressUnreachable(f"{url[:200]} answered with {answer.status}: {text}")


def _refused(url: str, text: str) -> EgressDenied | EgressUnreachable:
    if text.startswith("403"):
        return EgressDenied(
            f"{_host_of(url)} may not be reached: {text}.", hint="Its owner can allow it: egress entries."
        )
    return EgressUnreachable(f"{_host_of(url)} is not reached: {text}.")


async def _whole(answer: Any, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    """Raises `EgressUnreachable` when it is shorter than it was said to be."""
    told, seen = headers.get("content-length", ""), 0
    async for piece in answer.aiter_stream():
        seen += len(piece)
        yield piece
    if told.isdecimal() and "content-encoding" not in headers and seen != int(told):
        raise EgressUnreachable(f"It broke off after {seen} of {told} bytes.")


def _host_of(url: str) -> str:
    """`host` or `host:port`. Raises `InvalidArgument`."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = normalise_host(parts.hostname or "")
    except ValueError:
        raise InvalidArgument(f"{url[:200]!r} is no address of the web.") from None
    if parts.scheme not in ("http", "https") or parts.username is not None:
        raise InvalidArgument(
            f"{url[:200]!r} is no address of the web.", hint="Write https://host/path, no user names."
        )
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"


def _name_of(url: str, headers: Mapping[str, str]) -> str:
    told = re.search(r'filename="?([^";]+)', headers.get("content-disposition", ""))
    name = told[1] if told else unquote(urlsplit(url).path.rpartition("/")[2])
    name = "".join(char for char in name if char.isprintable())[:200] or "data"
    kind = headers.get("content-type", "").partition(";")[0].strip()
    ending = _ENDINGS.get(kind, "")
    return name if "." in name or not ending else f"{name}.{ending}"


_ENDINGS = {
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "application/json": "json",
    "application/x-ndjson": "ndjson",
}


def _version_of(headers: Mapping[str, str]) -> str | None:
    told = headers.get("etag") or headers.get("last-modified")
    return None if told is None else hashlib.sha256(told.encode()).hexdigest()


def _place_of(source: str) -> tuple[str, str]:
    bucket, _, key = source.removeprefix("s3://").partition("/")
    if not re.match(r"[a-z0-9][a-z0-9.-]{0,61}[a-z0-9]\Z", bucket) or len(key.encode("utf-8", "replace")) > 1024:
        raise InvalidArgument(f"{source[:200]!r} is not the address of an object.", hint="Write it as s3://bucket/key.")
    return bucket, key


def _below(key: str, name: str) -> bool:
    """Whether an object is what an address stands for: a prefix ends with "/", or is empty."""
    return name == key or key == "" or key.endswith("/")


def _listed_elsewhere(source: str) -> list[Listed]:
    import os

    import obstore
    from obstore.store import S3Store

    from tenure.offices.archives import s3

    place = s3.parse_place(source)
    config = s3.configuration(os.environ)
    plain = str(config.get("endpoint", "")).startswith("http://")
    store: Any = S3Store(place.bucket, config=config, client_options={"allow_http": plain})  # type: ignore[arg-type]
    listed: list[Listed] = []
    try:
        pages: Any = obstore.list(store, place.key or None)  # pyright: ignore[reportUnknownMemberType]
        items = [item for page in pages for item in page]
    except FileNotFoundError:
        raise NotFound(f"There is no bucket {place.bucket}.") from None
    except Exception as error:
        raise StorageError(f"Listing {place} failed: {type(error).__name__}.") from error
    if not place.is_directory and not items:
        items = [obstore.head(store, place.key)]
    for item in items[:LISTED_MAX]:
        name = str(item["path"])
        version = f"{item.get('e_tag') or ''}{item['last_modified']}{item['size']}"
        listed.append(Listed(f"s3://{place.bucket}/{name}", hashlib.sha256(version.encode()).hexdigest()))
    return listed


async def _read(reader: Any) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(reader.read, CHUNK_BYTES * 4):
        yield piece
