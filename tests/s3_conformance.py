"""Runs the conformance suite ceph/s3-tests, of a checkout that is given, against our S3 API.

    python tests/s3_conformance.py /path/to/s3-tests      (or: make s3-tests S3_TESTS=/path/to/s3-tests)

The suite is somebody else's program: it gets an environment of its own (its requirements are installed once, in the
temporary directory) and the keys of several principals: the owner, whose buckets are shared ones, and three agents. The tests
that pass are pinned in `s3_conformance.passing`: one of those that fails is an error, one more is told, and
`--pin` writes the list anew. Left out is what no part of us claims to be: life cycles, encryption by headers, storage
classes in clouds, logs; and what the suite itself says that its home fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
PASSING = HERE / "s3_conformance.passing"
COMMIT = "8f0ae7b"
"""Of the suite, with which the list was made."""
MODULES = ("s3tests/functional/test_s3.py", "s3tests/functional/test_headers.py")
LEFT_OUT = (
    *("lifecycle", "lifecycle_expiration", "lifecycle_transition", "sse_s3", "encryption", "bucket_encryption"),
    *("cloud_transition", "cloud_restore", "bucket_logging", "bucket_logging_cleanup", "fails_on_rgw"),
)
AGENTS = ("alt", "tenant", "iam")
RESULT = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED)\s+s3tests/functional/(\S+)", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--pin", action="store_true", help="write the list of the tests that pass")
    parser.add_argument("-k", default="", help="only tests that match; the list is then not compared as a whole")
    arguments = parser.parse_args()
    if not (arguments.checkout / MODULES[0]).is_file():
        print(f"{arguments.checkout} is no checkout of ceph/s3-tests: clone it, at {COMMIT}.", file=sys.stderr)
        return 2
    passed, failed = run(arguments.checkout, arguments.k)
    print(f"{len(passed)} of {len(passed) + len(failed)} pass.")
    if arguments.pin:
        PASSING.write_text("".join(f"{name}\n" for name in sorted(passed)))
        return 0
    pinned = set(PASSING.read_text().split())
    lost, won = sorted(pinned & failed if arguments.k else pinned - passed), sorted(passed - pinned)
    for name in won:
        print(f"passes now: {name} (--pin keeps it)")
    for name in lost:
        print(f"FAILS, and passed before: {name}")
    return 1 if lost else 0


def run(checkout: Path, only: str) -> tuple[set[str], set[str]]:
    """The tests that passed, and those that did not."""
    python = environment(checkout)
    with tempfile.TemporaryDirectory(prefix="s3-tests-") as place, serving(Path(place) / "home") as (port, keys):
        config = Path(place) / "s3tests.conf"
        config.write_text(configuration(port, keys))
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", "--tb=no", *MODULES]
        command += ["-m", " and ".join(f"not {mark}" for mark in LEFT_OUT), *(["-k", only] if only else [])]
        ran = subprocess.run(
            command,
            cwd=checkout,
            env={"PATH": os.environ["PATH"], "HOME": place, "S3TEST_CONF": str(config), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    found = RESULT.findall(ran.stdout)
    if not found:
        print(ran.stdout[-4000:], file=sys.stderr)
        raise SystemExit("The suite did not run.")
    passed = {name for result, name in found if result == "PASSED"}
    return passed, {name for result, name in found if result in ("FAILED", "ERROR")} - passed


def environment(checkout: Path) -> str:
    """The Python of an environment with the suite's requirements."""
    wanted = (checkout / "requirements.txt").read_bytes()
    place = Path(tempfile.gettempdir()) / f"s3-tests-venv-{hashlib.sha256(wanted).hexdigest()[:12]}"
    python = place / "bin" / "python"
    if not (place / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", checkout / "requirements.txt"], check=True)
        (place / "whole").touch()
    return str(python)


@contextlib.contextmanager
def serving(home: Path) -> Iterator[tuple[int, dict[str, tuple[str, str, str]]]]:
    """The API on a port of the loopback; (principal, key, secret) by section of the suite's configuration."""
    from fixtures.s3_world import World
    from tenure.data.s3.app import s3_app
    from tenure.data.s3.authentication import Authenticator
    from tenure.data.s3.sessions import Sessions
    from tenure.identity.authorize import Principal, PrincipalKind
    from tenure.identity.tokens import OWNER
    from tenure.server.listeners import listen
    from tenure.testing.fake_access_keys import FakeKeyStore

    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    keys: dict[str, tuple[str, str, str]] = {}
    ready, stopped = threading.Event(), threading.Event()

    async def serve() -> None:
        store = FakeKeyStore()
        for name in ("main", *AGENTS):
            principal = OWNER if name == "main" else Principal(PrincipalKind.OFFICE, name)
            key, secret = await store.create(principal, None if name == "main" else 1, by=OWNER)
            keys[name] = (str(principal), key.id, secret)
        app = s3_app(World(home, AGENTS).buckets, Authenticator(store, Sessions(bytes(32))), hosts=("localhost",))
        listener = await listen(app, sock)
        ready.set()
        await asyncio.to_thread(stopped.wait)
        await listener.close(grace_s=1)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield sock.getsockname()[1], keys
    finally:
        stopped.set()
        thread.join()


def configuration(port: int, keys: dict[str, tuple[str, str, str]]) -> str:
    lines = ["[DEFAULT]", "host = 127.0.0.1", f"port = {port}", "is_secure = False", "ssl_verify = False"]
    lines += ["[fixtures]", "bucket prefix = tenure-{random}-", "iam name prefix = t-", "iam path prefix = /t/"]
    sections = {"s3 main": "main", "s3 alt": "alt", "s3 tenant": "tenant", "iam": "iam", "iam root": "iam"}
    for section, name in {**sections, "iam alt root": "iam"}.items():
        principal, key, secret = keys[name]
        lines += [
            f"[{section}]",
            f"display_name = {principal}",
            f"user_id = {principal}",
            f"email = {name}@example.com",
        ]
        lines += [f"access_key = {key}", f"secret_key = {secret}", "api_name =", "tenant = elsewhere"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
