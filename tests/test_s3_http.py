"""At an office's door plain HTTP is enough; names are decoded once, ranges lie inside, what is told becomes no header."""

from __future__ import annotations

import xml.etree.ElementTree as Tree
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fixtures.s3_server import app_of, at_the_door
from tenure.data.objects import ObjectStore
from tenure.data.s3.api.call import check_header
from tenure.data.s3.api.objects import parse_range
from tenure.data.s3.errors import S3Error
from tenure.data.s3.events import ObjectEvent, ObjectEvents
from tenure.data.s3.xml import element, parse, render
from tenure.identity.authorize import Principal, PrincipalKind

NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@pytest.fixture
def events() -> ObjectEvents:
    return ObjectEvents()


@pytest.fixture
async def http(tmp_path: Path, events: ObjectEvents) -> AsyncIterator[httpx.AsyncClient]:
    app = app_of(ObjectStore(tmp_path / "objects"), at_the_door(), events)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s3:9000") as client:
        yield client


def keys(answer: httpx.Response) -> list[str]:
    return [one.text or "" for one in Tree.fromstring(answer.content).iter(f"{NAMESPACE}Key")]


def code(answer: httpx.Response) -> str:
    return Tree.fromstring(answer.content).findtext("Code") or ""


async def test_objects_by_plain_http(http: httpx.AsyncClient) -> None:
    assert (await http.get("/")).status_code == 200
    put = await http.put("/reports/a%2Fb%20%C3%A9.txt", content=b"hello", headers={"content-type": "text/plain"})
    assert put.status_code == 200
    got = await http.get("/reports/a/b é.txt")
    assert (got.content, got.headers["content-type"]) == (b"hello", "text/plain")
    assert got.headers["etag"] == put.headers["etag"] == '"5d41402abc4b2a76b9719d911017c592"'
    head = await http.head("/reports/a/b é.txt")
    assert (head.content, head.headers["content-length"]) == (b"", "5")
    assert keys(await http.get("/reports?prefix=a/")) == ["a/b é.txt"]
    assert keys(await http.get("/reports?marker=a/z")) == []
    assert (await http.delete("/reports/a/b é.txt")).status_code == 204
    missing = await http.get("/reports/a/b é.txt")
    assert (missing.status_code, code(missing)) == (404, "NoSuchKey")
    assert (await http.delete("/reports")).status_code == 204
    assert code(await http.get("/reports")) == "NoSuchBucket"


@pytest.mark.parametrize("name", ["..", "../x", "a/../b", ".", "a//b", "/x", "%00", "a%0Ab", "%2F", "a+b", "\0"])
async def test_odd_names_are_names_and_nothing_else(http: httpx.AsyncClient, name: str) -> None:
    path = "".join(f"%{byte:02X}" for byte in name.encode())
    assert (await http.put(f"/b/{path}", content=b"x")).status_code == 200
    assert (await http.get(f"/b/{path}")).content == b"x"
    listed = await http.get("/b?encoding-type=url")
    assert [httpx.URL(f"http://x/{key}").raw_path for key in keys(listed)] == [
        httpx.URL(f"http://x/{one}").raw_path for one in [quote(name, safe="/")]
    ]


async def test_ranges(http: httpx.AsyncClient) -> None:
    await http.put("/b/x", content=b"0123456789")
    got = await http.get("/b/x", headers={"range": "bytes=2-4"})
    assert (got.status_code, got.content, got.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    assert (await http.get("/b/x", headers={"range": "bytes=-3"})).content == b"789"
    assert (await http.get("/b/x", headers={"range": "bytes=7-"})).content == b"789"
    assert (await http.get("/b/x", headers={"range": "bytes=10-"})).status_code == 416
    assert (await http.get("/b/x", headers={"range": "lines=1-2"})).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/Bad_Bucket", 404),
        ("PUT", "/Bad_Bucket", 400),
        ("PUT", "/b/" + "x" * 1025, 400),
        ("GET", "/b?max-keys=-1", 400),
        ("GET", "/b?max-keys=x", 400),
        ("GET", "/b?continuation-token=!&list-type=2", 400),
        ("GET", "/b/x?versionId=../../x", 400),
        ("GET", "/b/x?uploadId=..", 404),
        ("GET", "/b/%ff", 400),
        ("POST", "/b/x", 405),
        ("DELETE", "/none", 404),
        ("PUT", "/b?policy", 501),
        ("PUT", "/b?versioning", 400),
        ("GET", "/b?" + "&".join("a" for _ in range(200)), 400),
    ],
)
async def test_bad_requests_get_clear_errors(http: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    await http.put("/b/x", content=b"")
    answer = await http.request(method, path, content=b"<not-xml" if "versioning" in path else b"")
    assert answer.status_code == status
    assert Tree.fromstring(answer.content).findtext("Message")
    assert answer.headers["x-amz-request-id"] == Tree.fromstring(answer.content).findtext("RequestId")


async def test_another_office_has_nothing_here(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "objects")
    await store.create_bucket("b")
    app = app_of(store, at_the_door(Principal(PrincipalKind.OFFICE, "writer")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s3") as client:
        for method, path in (("GET", "/"), ("PUT", "/b/x"), ("GET", "/b/x"), ("DELETE", "/b/x"), ("GET", "/b")):
            assert (await client.request(method, path)).status_code in (403, 404)


async def test_what_a_program_says_of_an_object_becomes_no_header_of_its_own(http: httpx.AsyncClient) -> None:
    await http.put("/b/x", content=b"1")
    for path in (
        "/b/x?response-content-type=text/html%0d%0aset-cookie:a=b",
        "/b/x?response-cache-control=a%00b",
        "/b/x?response-expires=%E2%98%83",
    ):
        refused = await http.get(path)
        assert (refused.status_code, code(refused)) == (400, "InvalidArgument")
    kept = await http.get("/b/x?response-content-type=text/x")
    assert (kept.headers["content-type"], kept.headers["x-content-type-options"]) == ("text/x", "nosniff")


async def test_lists_page_by_page_are_the_whole_list(http: httpx.AsyncClient) -> None:
    names = sorted([*(f"d{n}/f{m}" for n in range(4) for m in range(4)), "a", "z"])
    for name in names:
        await http.put(f"/b/{name}", content=b"")
    found, token = list[str](), ""
    while True:
        page = await http.get(
            "/b", params={"list-type": "2", "max-keys": "5"} | ({"continuation-token": token} if token else {})
        )
        found += keys(page)
        token = Tree.fromstring(page.content).findtext(f"{NAMESPACE}NextContinuationToken") or ""
        if not token:
            break
    assert found == names
    top = Tree.fromstring((await http.get("/b?delimiter=/")).content)
    assert [one.findtext(f"{NAMESPACE}Prefix") for one in top.iter(f"{NAMESPACE}CommonPrefixes")] == [
        "d0/",
        "d1/",
        "d2/",
        "d3/",
    ]


async def test_whoever_listens_is_told_of_changes(http: httpx.AsyncClient, events: ObjectEvents) -> None:
    told: list[ObjectEvent] = []

    def broken(event: ObjectEvent) -> None:
        raise RuntimeError("a listener of the tests")

    events.subscribe(broken)
    end = events.subscribe(told.append)
    await http.put("/b/x", content=b"1")
    await http.put("/b/y", headers={"x-amz-copy-source": "/b/x"})
    await http.delete("/b/x")
    end()
    await http.put("/b/z", content=b"1")
    assert [(one.kind, one.owner, one.bucket, one.key) for one in told] == [
        ("put", "analyst", "b", "x"),
        ("put", "analyst", "b", "y"),
        ("delete", "analyst", "b", "x"),
    ]
    assert told[0].etag == told[1].etag != ""


@given(st.text(max_size=30), st.integers(0, 100))
@example("bytes=-0", 10)
@example("bytes=5-2", 10)
@example("bytes=0-0", 0)
def test_ranges_lie_inside_the_object(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        found = parse_range(text, size)
        assert not found or 0 <= found[0] < found[1] <= size


@given(st.text(max_size=50))
def test_text_comes_through_xml_as_it_was(text: str) -> None:
    shown = render(element("Key", text), namespace="")
    if all(char >= " " or char in "\t\n\r" for char in text) and not any(char in "\ufffe\uffff" for char in text):
        assert (parse(shown, "Key").text or "") == text


@pytest.mark.parametrize(
    "body",
    [
        b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><Tagging>&e;</Tagging>',
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><Tagging>&b;</Tagging>',
        b"<Tagging>",
        b"",
        b"<Other/>",
    ],
)
def test_hostile_xml_is_refused(body: bytes) -> None:
    with pytest.raises(S3Error, match="MalformedXML"):
        parse(body, "Tagging")


@given(st.text(max_size=20))
def test_a_header_that_passes_is_one_line(text: str) -> None:
    try:
        passed = check_header(text)
    except S3Error:
        return
    assert not set(passed) & {"\r", "\n", "\0"}
    passed.encode("latin-1")
