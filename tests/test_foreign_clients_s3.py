"""S3 clients that nobody here wrote do their work on our objects, unmodified, over the address outside.

They are of tests/clients.lock: boto3, aws-cli, rclone, s3cmd, obstore. The last test is one of them within an office, which tells
it where everything is.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import foreign_clients
from fixtures.live import Live

SMALL, ODD = b"small content\n", "a b/é+=&.txt"
LARGE = random.Random(7).randbytes(18 * 1024**2)
"""More than any client sends in one part."""
CLIENT_S_MAX = 180


@pytest.fixture(scope="session")
def programs() -> Path:
    return foreign_clients.environment()


@dataclass
class Outside:
    """An agent's objects from outside, with a key of the agent's."""

    live: Live
    programs: Path
    directory: Path
    agent: str
    url: str
    key_id: str
    secret: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "AWS_ACCESS_KEY_ID": self.key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "local",
            "AWS_DEFAULT_REGION": "local",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ALLOW_HTTP": "true",
            "no_proxy": "localhost,127.0.0.1",
        }

    def run(self, *argv: str | Path, env: Mapping[str, str] | None = None, fails: bool = False) -> str:
        """What it writes to stdout. It has to succeed, or to fail."""
        done = subprocess.run(
            [os.fspath(word) for word in argv],
            env={**self.environment, **(env or {})},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=CLIENT_S_MAX,
        )
        assert (done.returncode != 0) == fails, f"{argv}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + (done.stderr if fails else "")

    def python(self, code: str, *arguments: str) -> str:
        return self.run("python", "-c", code, *arguments)

    def stored(self, bucket: str, name: str) -> bytes:
        """As Tenure's own API has it."""
        return self.live.tenure.agents(self.agent).objects.get(bucket, name)

    def file(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


@pytest.fixture(scope="module")
def outside(live: Live, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Outside:
    agent = live.tenure.agents.create(live.name("s3"), asleep=True)
    key = live.tenure.access_keys.create(agent.name, comment="for the tests")
    assert key.endpoint_url == f"http://localhost:{live.settings.s3_port}"
    directory = tmp_path_factory.mktemp("clients")
    return Outside(live, programs, directory, agent.name, key.endpoint_url, key.id, key.secret)


BOTO3 = """
import boto3, hashlib, io, json, sys, urllib.request
from botocore.config import Config
from botocore.exceptions import ClientError
url, odd, large_file = sys.argv[1:4]
s3 = boto3.client("s3", endpoint_url=url)
s3.create_bucket(Bucket="boto")
s3.put_object(Bucket="boto", Key=odd, Body=b"small content\\n", Metadata={"source": "test"}, ContentType="text/plain")
got = s3.get_object(Bucket="boto", Key=odd)
assert got["Body"].read() == b"small content\\n" and got["Metadata"] == {"source": "test"}, got
large = open(large_file, "rb").read()
s3.upload_file(large_file, "boto", "large")  # in parts
assert "-" in s3.head_object(Bucket="boto", Key="large")["ETag"]
out = io.BytesIO()
s3.download_fileobj("boto", "large", out)
assert out.getvalue() == large
s3.copy({"Bucket": "boto", "Key": "large"}, "boto", "copies/large")
for number in range(5):
    s3.put_object(Bucket="boto", Key=f"many/{number}", Body=b"x")
pages = s3.get_paginator("list_objects_v2").paginate(Bucket="boto", PaginationConfig={"PageSize": 3})
keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
assert keys == sorted([odd, "large", "copies/large", *(f"many/{n}" for n in range(5))], key=str.encode), keys
address = s3.generate_presigned_url("get_object", Params={"Bucket": "boto", "Key": odd}, ExpiresIn=60)
assert urllib.request.urlopen(address).read() == b"small content\\n"
address = s3.generate_presigned_url("put_object", Params={"Bucket": "boto", "Key": "presigned"}, ExpiresIn=60)
urllib.request.urlopen(urllib.request.Request(address, b"by address", method="PUT"))
assert s3.get_object(Bucket="boto", Key="presigned")["Body"].read() == b"by address"
virtual = boto3.client("s3", endpoint_url=url, config=Config(s3={"addressing_style": "virtual"}))
print(virtual.generate_presigned_url("get_object", Params={"Bucket": "boto", "Key": "presigned"}))
try:
    s3.put_object(Bucket="boto", Key="presigned", Body=b"again", IfNoneMatch="*")
except ClientError as error:
    assert error.response["Error"]["Code"] == "PreconditionFailed", error
else:
    raise SystemExit("stored over what there is")
gone = s3.delete_objects(Bucket="boto", Delete={"Objects": [{"Key": f"many/{n}"} for n in range(5)]})
assert len(gone["Deleted"]) == 5
s3.delete_object(Bucket="boto", Key="copies/large")
s3.delete_object(Bucket="boto", Key="large")
print(json.dumps([one["Key"] for one in s3.list_objects_v2(Bucket="boto")["Contents"]]))
"""


def test_boto3(outside: Outside) -> None:
    left = outside.python(BOTO3, outside.url, ODD, str(outside.file("large", LARGE)))
    address, keys = left.splitlines()
    assert json.loads(keys) == [ODD, "presigned"]
    assert address.startswith("http://boto.localhost:")
    assert outside.run("curl", "-sSf", address) == "by address"  # which knows where all of .localhost is
    assert outside.stored("boto", "presigned") == b"by address"


def test_aws_cli(outside: Outside) -> None:
    outside.file("tree/a.txt", SMALL)
    outside.file(f"tree/{ODD}", SMALL)
    outside.file("tree/large", LARGE)
    outside.run("aws", "s3", "mb", "s3://cli")
    outside.run("aws", "s3", "sync", "tree", "s3://cli/tree")
    assert outside.stored("cli", f"tree/{ODD}") == SMALL
    listed = outside.run("aws", "s3", "ls", "--recursive", "s3://cli")
    assert str(len(LARGE)) in listed
    outside.run("aws", "s3", "cp", "s3://cli/tree/large", "s3://cli/copy")
    outside.run("aws", "s3", "cp", "s3://cli/copy", "back")
    assert (outside.directory / "back").read_bytes() == LARGE
    address = outside.run("aws", "s3", "presign", "s3://cli/tree/a.txt").strip()
    assert httpx.get(address).content == SMALL
    assert httpx.put(address, content=b"x").status_code == 403
    outside.run(
        "aws",
        "s3api",
        "put-object-tagging",
        "--bucket",
        "cli",
        "--key",
        "copy",
        "--tagging",
        "TagSet=[{Key=a,Value=b}]",
    )
    tags = outside.run("aws", "s3api", "get-object-tagging", "--bucket", "cli", "--key", "copy")
    assert json.loads(tags)["TagSet"] == [{"Key": "a", "Value": "b"}]
    outside.run("aws", "s3", "rm", "--recursive", "s3://cli")
    outside.run("aws", "s3", "rb", "s3://cli")
    assert "NoSuchBucket" in outside.run("aws", "s3", "ls", "s3://cli", fails=True)


def test_rclone(outside: Outside) -> None:
    remote = {
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_CONFIG_T_TYPE": "s3",
        "RCLONE_CONFIG_T_PROVIDER": "Other",
        "RCLONE_CONFIG_T_ENV_AUTH": "true",
        "RCLONE_CONFIG_T_ENDPOINT": outside.url,
    }
    outside.file("rtree/a.txt", SMALL)
    outside.file(f"rtree/{ODD}", SMALL)
    outside.file("rtree/large", LARGE)
    in_parts = ("--s3-upload-cutoff", "5M", "--s3-chunk-size", "5M")
    outside.run("rclone", "sync", *in_parts, "rtree", "T:rclone/tree", env=remote)
    assert outside.stored("rclone", f"tree/{ODD}") == SMALL
    outside.run("rclone", "check", "--download", "rtree", "T:rclone/tree", env=remote)
    outside.run("rclone", "copyto", "T:rclone/tree/large", "T:rclone/copy", env=remote)
    outside.run("rclone", "copyto", "T:rclone/copy", "rback", env=remote)
    assert (outside.directory / "rback").read_bytes() == LARGE
    address = outside.run("rclone", "link", "--expire", "1m", "T:rclone/tree/a.txt", env=remote).strip()
    assert httpx.get(address).content == SMALL
    (outside.directory / "rtree/a.txt").unlink()
    outside.run("rclone", "sync", "rtree", "T:rclone/tree", env=remote)
    assert sorted(outside.run("rclone", "lsf", "-R", "--files-only", "T:rclone", env=remote).split("\n")) == sorted(
        ["", "copy", f"tree/{ODD}", "tree/large"]
    )
    outside.run("rclone", "purge", "T:rclone", env=remote)


def test_s3cmd(outside: Outside) -> None:
    host = outside.url.partition("://")[2]
    s3cmd = ("s3cmd", "--no-ssl", f"--host={host}", f"--host-bucket={host}")
    outside.file("stree/a.txt", SMALL)
    outside.file("stree/large", LARGE)
    outside.run(*s3cmd, "mb", "s3://s3cmd")
    outside.run(*s3cmd, "sync", "stree/", "s3://s3cmd/tree/")
    outside.run(*s3cmd, "put", outside.file("odd", SMALL), f"s3://s3cmd/{ODD}")
    assert outside.stored("s3cmd", "tree/large") == LARGE
    assert outside.stored("s3cmd", ODD) == SMALL
    outside.run(*s3cmd, "cp", "s3://s3cmd/tree/a.txt", "s3://s3cmd/copy")
    outside.run(*s3cmd, "get", "--force", "s3://s3cmd/tree/large", "sback")
    assert (outside.directory / "sback").read_bytes() == LARGE
    assert "s3://s3cmd/copy" in outside.run(*s3cmd, "ls", "s3://s3cmd")
    outside.run(*s3cmd, "del", "s3://s3cmd/copy")
    assert "s3://s3cmd/copy" not in outside.run(*s3cmd, "ls", "s3://s3cmd")


OBSTORE = """
import asyncio, sys, urllib.request
from datetime import timedelta
import obstore
from obstore.store import S3Store
odd, large_file = sys.argv[1:3]
store = S3Store("obstore")
large = open(large_file, "rb").read()
obstore.put(store, odd, b"small content\\n")
assert bytes(obstore.get(store, odd).bytes()) == b"small content\\n"
obstore.put(store, "large", large, use_multipart=True, chunk_size=5 * 1024**2)
assert bytes(obstore.get(store, "large").bytes()) == large
assert bytes(obstore.get_range(store, "large", start=1000, end=2000)) == large[1000:2000]
obstore.copy(store, "large", "copies/large")
obstore.rename(store, "copies/large", "copies/other")
assert {one["path"] for page in store.list() for one in page} == {odd, "large", "copies/other"}
address = obstore.sign(store, "GET", odd, timedelta(minutes=1))
assert urllib.request.urlopen(address).read() == b"small content\\n"
try:
    obstore.put(store, odd, b"again", mode="create")
except obstore.exceptions.AlreadyExistsError:
    pass
else:
    raise SystemExit("stored over what there is")
obstore.delete(store, ["large", "copies/other"])
print(*sorted(one["path"] for page in store.list() for one in page))
"""


def test_obstore(outside: Outside) -> None:
    outside.run("aws", "s3", "mb", "s3://obstore")
    left = outside.python(OBSTORE, ODD, str(outside.file("large", LARGE)))
    assert left.strip() == ODD
    assert outside.stored("obstore", ODD) == SMALL


def test_curl_with_an_address_of_tenure(outside: Outside) -> None:
    objects = outside.live.tenure.agents(outside.agent).objects
    put, get = objects.presign("curl", ODD, put=True), objects.presign("curl", ODD)
    objects.put("curl", "other", b"x")
    outside.file("up", SMALL)
    outside.run("curl", "-sSf", "-T", "up", put.url)
    assert outside.run("curl", "-sSf", get.url) == SMALL.decode()
    assert outside.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", put.url) == "403"
    outside.live.tenure.access_keys.revoke_lent(outside.agent)
    assert "ExpiredToken" in outside.run("curl", "-sS", get.url)


def test_a_revoked_key_is_refused_by_its_code(outside: Outside) -> None:
    key = outside.live.tenure.access_keys.create(outside.agent)
    theirs = {"AWS_ACCESS_KEY_ID": key.id, "AWS_SECRET_ACCESS_KEY": key.secret}
    outside.run("aws", "s3", "ls", env=theirs)
    outside.live.tenure.access_keys.revoke(key.id)
    assert "InvalidAccessKeyId" in outside.run("aws", "s3", "ls", env=theirs, fails=True)
    wrong = {"AWS_SECRET_ACCESS_KEY": outside.secret[:-1]}
    assert "SignatureDoesNotMatch" in outside.run("aws", "s3", "ls", env=wrong, fails=True)


def test_a_key_for_one_bucket_to_read(outside: Outside) -> None:
    objects = outside.live.tenure.agents(outside.agent).objects
    objects.put("narrow", "a", SMALL)
    objects.put("hidden", "a", SMALL)
    key = outside.live.tenure.access_keys.create(outside.agent, buckets={"narrow": "read"})
    theirs = {"AWS_ACCESS_KEY_ID": key.id, "AWS_SECRET_ACCESS_KEY": key.secret}
    assert outside.run("aws", "s3", "cp", "s3://narrow/a", "-", env=theirs) == SMALL.decode()
    for refused in (("cp", "s3://hidden/a", "-"), ("rm", "s3://narrow/a"), ("mb", "s3://new")):
        assert "AccessDenied" in outside.run("aws", "s3", *refused, env=theirs, fails=True) or refused[0] == "cp"
    assert "hidden" not in outside.run("aws", "s3", "ls", env=theirs)


IN_OFFICE = """
import boto3
s3 = boto3.client("s3")
s3.create_bucket(Bucket="within")
s3.put_object(Bucket="within", Key="a b/é", Body=b"from within")
print(s3.get_object(Bucket="within", Key="a b/é")["Body"].read().decode())
print(boto3.Session().get_credentials().method)
"""


def without_other_services(directory: str, names: list[str]) -> list[str]:
    """boto3 describes four hundred services of AWS's in as many directories."""
    in_data = directory.endswith(("botocore/data", "boto3/data"))
    return [name for name in names if in_data and name != "s3" and "." not in name] + ["__pycache__"]


def test_boto3_in_an_office_needs_no_configuration(live: Live, programs: Path, tmp_path: Path) -> None:
    """The client's files are copied in, as pip would put them there."""
    office = live.agent("within")
    packages = next(programs.parent.glob("lib/python3*/site-packages"))
    site = tmp_path / "site"
    for name in ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "urllib3"):
        shutil.copytree(packages / name, site / name, ignore=without_other_services)
    shutil.copy(packages / "six.py", site)
    office.upload(site, "/home/agent/site")
    done = office.exec(["env", "PYTHONPATH=/home/agent/site", "python3", "-c", IN_OFFICE])
    assert done.exit_code == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["from within", "container-role"]
    assert office.objects.get("within", "a b/é") == b"from within"
    token = office.exec("curl -s $AWS_CONTAINER_CREDENTIALS_FULL_URI?format=env").stdout
    assert "AWS_SESSION_TOKEN=t1.office." in token
