"""Uploads by the form of a web page. What its policy allows was checked with its signature."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from urllib.parse import quote, urlsplit

from starlette.responses import Response

from tenure.data.s3.api.call import Call, check_header, empty, quoted, url_encoded, xml
from tenure.data.s3.api.described import CHECKSUM, TAGS_MAX, about, check_tags, checksum_algorithm
from tenure.data.s3.api.form import Form
from tenure.data.s3.api.objects import stored_headers
from tenure.data.s3.checksums import digest_of, text_of
from tenure.data.s3.errors import S3Error
from tenure.data.s3.xml import children, element, parse

FILENAME = "${filename}"


def final_fields(form: Form) -> dict[str, str]:
    """With the name of the file in the key. Raises `S3Error` for a form without a key."""
    fields = {name: value for name, value in form.fields.items() if name != "file-content-type"}
    if not fields.get("key"):
        raise S3Error("InvalidArgument", "Bucket POST must contain a field named 'key'.")
    return fields | {"key": fields["key"].replace(FILENAME, form.filename)}


async def store(call: Call, form: Form, bytes_min: int, bytes_max: int | None) -> Response:
    """The file of the form. `call` is by whoever signed the form, for the form's key."""
    fields, key = form.fields, call.request.key
    bucket = await call.bucket("object:write")
    headers = {name: value for name, value in fields.items() if not name.startswith("x-amz-signature")}
    headers.pop("x-amz-algorithm", None)
    if "content-type" not in headers and form.fields.get("file-content-type"):
        headers["content-type"] = form.fields["file-content-type"]
    algorithm = checksum_algorithm(headers)
    told = about(headers, checksum=algorithm)
    if tagging := fields.get("tagging"):
        tag_set = parse(tagging.encode(), "Tagging").find("TagSet")
        if tag_set is None:
            raise S3Error("MalformedXML")
        rows = [(one.findtext("Key") or "", one.findtext("Value") or "") for one in children(tag_set, "Tag")]
        told = replace(told, tags=check_tags(rows, TAGS_MAX))
    redirect = _redirect(fields.get("success_action_redirect") or fields.get("redirect") or "")
    content = _checked(form.file, bytes_min, bytes_max, algorithm, headers.get(CHECKSUM + algorithm.lower(), ""))
    version = await bucket.backend.put(key, content, told)
    call.tell_put(bucket, version)
    answer = stored_headers(version)
    location = f"http://{call.request.header('host')}/{bucket.name}/{url_encoded(key)}"
    if redirect:
        joint = "&" if urlsplit(redirect).query else "?"
        told_back = f"bucket={quote(bucket.name)}&key={quote(key)}&etag={quote(quoted(version.etag))}"
        return empty(303, answer | {"location": f"{redirect}{joint}{told_back}"})
    answer["location"] = location
    status = fields.get("success_action_status", "")
    if status == "201":
        rows = element("Location", location), element("Bucket", bucket.name), element("Key", key)
        return xml(element("PostResponse", *rows, element("ETag", quoted(version.etag))), 201, answer)
    return empty(200 if status == "200" else 204, answer)


async def _checked(
    file: AsyncIterator[bytes], bytes_min: int, bytes_max: int | None, algorithm: str, expected: str
) -> AsyncGenerator[bytes]:
    size, digest = 0, digest_of(algorithm) if algorithm and expected else None
    async for chunk in file:
        size += len(chunk)
        if bytes_max is not None and size > bytes_max:
            raise S3Error("EntityTooLarge", "Your proposed upload exceeds the maximum allowed size")
        if digest is not None:
            digest.update(chunk)
        yield chunk
    if size < bytes_min:
        raise S3Error("EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
    if digest is not None and text_of(digest.digest()) != expected:
        raise S3Error("BadDigest", f"The {algorithm} you specified did not match what we received.")


def _redirect(text: str) -> str:
    """Where a browser is sent on to; what is no address of the web is as if it had not been said."""
    check_header(text)
    return text if urlsplit(text).scheme in ("http", "https") and text.isascii() else ""
