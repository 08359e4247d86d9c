"""Cross-origin requests: which web pages a browser lets speak to a bucket. Says nothing of who may what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from tenure.data.s3.api.call import Call, check_header, empty, xml
from tenure.data.s3.buckets import CONFIGURE
from tenure.data.s3.errors import S3Error
from tenure.data.s3.request import S3Request
from tenure.data.s3.xml import Element, children, element, parse, text_of

RULES_MAX = 100
METHODS = frozenset({"GET", "PUT", "HEAD", "POST", "DELETE"})
_LISTS = {
    "origins": "AllowedOrigin",
    "methods": "AllowedMethod",
    "headers": "AllowedHeader",
    "expose": "ExposeHeader",
}
CorsRule = Mapping[str, Any]


async def get(call: Call) -> Response:
    bucket = await call.bucket("object:list", key=False)
    rules: Sequence[CorsRule] = (await bucket.backend.settings()).values.get("cors") or ()
    if not rules:
        raise S3Error("NoSuchCORSConfiguration")
    return xml(element("CORSConfiguration", *(_element(rule) for rule in rules)))


async def put(call: Call) -> Response:
    bucket = await call.bucket(CONFIGURE, key=False)
    root = parse(await call.body(), "CORSConfiguration")
    rules: list[dict[str, Any]] = []
    for one in children(root, "CORSRule"):
        rule: dict[str, Any] = {
            name: [check_header((child.text or "").strip()) for child in children(one, tag)]
            for name, tag in _LISTS.items()
        }
        age = text_of(one, "MaxAgeSeconds")
        if age is not None:
            if not age.isdecimal() or len(age) > 9:
                raise S3Error("MalformedXML")
            rule["max_age_s"] = int(age)
        if name := text_of(one, "ID"):
            rule["id"] = name
        if not rule["origins"] or not rule["methods"] or not METHODS.issuperset(rule["methods"]):
            raise S3Error("MalformedXML", "A rule has origins, and methods of GET, PUT, HEAD, POST, DELETE.")
        if any(text.count("*") > 1 for text in (*rule["origins"], *rule["headers"])):
            raise S3Error("InvalidRequest", "An origin or header has at most one *.")
        rules.append(rule)
    if not 1 <= len(rules) <= RULES_MAX:
        raise S3Error("MalformedXML", f"There are 1 to {RULES_MAX} rules.")
    await bucket.backend.change("cors", rules)
    return empty()


async def delete(call: Call) -> Response:
    bucket = await call.bucket(CONFIGURE, key=False)
    await bucket.backend.change("cors", None)
    return empty(204)


def headers_for(rules: Sequence[CorsRule], origin: str, method: str, asked: Sequence[str] = ()) -> dict[str, str]:
    """Those that let a page of `origin` send `method` with the headers `asked`; empty when no rule does. Pure."""
    for rule in rules:
        matching = next((one for one in rule["origins"] if _matches(one, origin)), None)
        if matching is None or method not in rule["methods"]:
            continue
        if not all(any(_matches(one.lower(), name.lower()) for one in rule["headers"]) for name in asked):
            continue
        found = {
            "access-control-allow-origin": "*" if matching == "*" else origin,
            "access-control-allow-methods": ", ".join(rule["methods"]),
            "vary": "Origin, Access-Control-Request-Headers, Access-Control-Request-Method",
        }
        if asked:
            found["access-control-allow-headers"] = ", ".join(asked)
        if rule["expose"]:
            found["access-control-expose-headers"] = ", ".join(rule["expose"])
        if "max_age_s" in rule:
            found["access-control-max-age"] = str(rule["max_age_s"])
        return found
    return {}


def preflight(request: S3Request, rules: Sequence[CorsRule]) -> Response:
    """Raises `S3Error`."""
    origin, method = request.header("origin"), request.header("access-control-request-method")
    if not origin:
        raise S3Error("BadRequest", "Insufficient information. Origin request header needed.", 400)
    if method not in METHODS:
        raise S3Error("BadRequest", "Invalid Access-Control-Request-Method: " + method[:40], 400)
    asked = [name.strip() for name in request.header("access-control-request-headers").split(",") if name.strip()]
    found = headers_for(rules, check_header(origin), method, [check_header(name) for name in asked])
    if not found:
        raise S3Error("AccessForbidden", "CORSResponse: This CORS request is not allowed.", 403)
    return empty(200, found)


def _matches(pattern: str, text: str) -> bool:
    if "*" not in pattern:
        return pattern == text
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) is not None


def _element(rule: CorsRule) -> Element:
    return element(
        "CORSRule",
        element("ID", rule["id"]) if "id" in rule else None,
        *(element(tag, text) for name, tag in _LISTS.items() for text in rule[name]),
        element("MaxAgeSeconds", rule["max_age_s"]) if "max_age_s" in rule else None,
    )
