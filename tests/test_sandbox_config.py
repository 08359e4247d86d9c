"""What a sandbox is started with follows from its spec alone; and both shapes of control groups are read right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenure.offices.sandboxes import oci
from tenure.offices.sandboxes.base import SandboxLimits, SandboxSpec
from tenure.offices.sandboxes.cgroups import Cgroup
from tenure.offices.sandboxes.gvisor import GvisorDriver

SPEC = SandboxSpec(
    id="analyst",
    root=Path("/pool/volumes/analyst/rootfs"),
    doorway=Path("/run/doors/analyst"),
    officed_dir=Path("/officed"),
    hostname="analyst",
    limits=SandboxLimits(cpus=1.5, memory_bytes=1024**3, processes_max=200),
    forwards=(("127.0.0.2:5432", "db.sock"), ("127.0.0.3:9000", "s3.sock")),
)


def test_limits_reach_the_runtime() -> None:
    config = oci.config(SPEC, cgroup_path="/tenure/x/analyst", tini=True)
    resources = config["linux"]["resources"]
    assert "quota" not in resources["cpu"], "the quota comes after the boot, which it would slow down"
    assert resources["memory"]["limit"] == 1024**3 + oci.RUNTIME_BYTES
    assert resources["pids"]["limit"] > SPEC.limits.processes_max
    limits = {limit["type"]: limit["hard"] for limit in config["process"]["rlimits"]}
    assert limits["RLIMIT_NPROC"] == 200
    assert config["linux"]["cgroupsPath"] == "/tenure/x/analyst"
    json.dumps(config)


@pytest.mark.parametrize(("cpus", "quota_us"), [(1.5, 150_000), (0.0001, 1000)])
@pytest.mark.parametrize("v2", [False, True])
def test_processors_become_a_legal_quota(tmp_path: Path, cpus: float, quota_us: int, v2: bool) -> None:
    directory = tmp_path / ("x" if v2 else "cpu/x")
    directory.mkdir(parents=True)
    if v2:
        (tmp_path / "cgroup.controllers").touch()
    Cgroup("/x", tmp_path).limit_cpu(cpus)
    if v2:
        assert (directory / "cpu.max").read_text() == f"{quota_us} 100000"
    else:
        assert (directory / "cpu.cfs_quota_us").read_text() == str(quota_us)


def test_what_comes_from_the_host_is_read_only() -> None:
    mounts = oci.config(SPEC, cgroup_path="/x", tini=True)["mounts"]
    bound = {mount["destination"]: mount for mount in mounts if mount["type"] == "bind"}
    assert {place: mount["source"] for place, mount in bound.items()} == {
        "/.tenure/bin": "/officed",
        "/.tenure/door": "/run/doors/analyst",
    }
    assert all("ro" in mount["options"] for mount in bound.values())


@pytest.mark.parametrize("power", ["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE", "CAP_NET_RAW", "CAP_SYS_PTRACE"])
def test_root_inside_has_no_power_over_limits_and_mounts(power: str) -> None:
    capabilities = oci.config(SPEC, cgroup_path="/x", tini=True)["process"]["capabilities"]
    assert all(power not in held for held in capabilities.values())


def test_officed_gets_its_forwards_and_is_first_where_tini_is_gone() -> None:
    with_tini = oci.config(SPEC, cgroup_path="/x", tini=True)["process"]["args"]
    without = oci.config(SPEC, cgroup_path="/x", tini=False)["process"]["args"]
    assert with_tini[-len(without) :] == without
    assert without[0] == "/.tenure/bin/officed"
    assert without[without.index("--door") + 1] == "/.tenure/door/door.sock"
    forwards = [without[index + 1] for index, word in enumerate(without) if word == "--forward"]
    assert forwards == ["127.0.0.2:5432=/.tenure/door/db.sock", "127.0.0.3:9000=/.tenure/door/s3.sock"]


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_control_groups_v1_are_one_directory_per_controller(tmp_path: Path) -> None:
    files = {
        "pids/t/a/cgroup.procs": "10\n11\n",
        "pids/t/a/pids.current": "7\n",
        "memory/t/a/memory.usage_in_bytes": "5000\n",
        "memory/t/a/memory.stat": "cache 1\ntotal_inactive_file 2000\n",
        "cpuacct/t/a/cpuacct.usage": "1500000000\n",
        "freezer/t/a/freezer.state": "THAWED\n",
    }
    _write(tmp_path, files)
    group = Cgroup("/t/a", tmp_path)
    assert not group.is_v2
    assert (group.pids(), group.tasks, group.memory_bytes, group.cpu_s) == ({10, 11}, 7, 3000, 1.5)
    assert not group.is_frozen
    group.freeze(frozen=True)
    assert group.is_frozen
    assert Cgroup("/t", tmp_path).children() == ["a"]


def test_control_groups_v2_are_one_directory(tmp_path: Path) -> None:
    files = {
        "cgroup.controllers": "cpu memory pids\n",
        "t/a/cgroup.procs": "10\n11\n",
        "t/a/pids.current": "7\n",
        "t/a/memory.current": "5000\n",
        "t/a/memory.stat": "anon 1\ninactive_file 2000\n",
        "t/a/cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
        "t/a/cgroup.events": "populated 1\nfrozen 1\n",
    }
    _write(tmp_path, files)
    group = Cgroup("/t/a", tmp_path)
    assert group.is_v2
    assert group.directories() == [tmp_path / "t/a"]
    assert (group.pids(), group.tasks, group.memory_bytes, group.cpu_s) == ({10, 11}, 7, 3000, 1.5)
    assert group.is_frozen
    group.freeze(frozen=False)
    assert (tmp_path / "t/a/cgroup.freeze").read_text() == "0"


def test_a_control_group_that_is_not_there_is_empty(tmp_path: Path) -> None:
    group = Cgroup("/none", tmp_path)
    assert (group.pids(), group.children(), group.directories(), group.tasks) == (set(), [], [], 0)
    assert group.remove()


def test_two_homes_never_share_a_control_group() -> None:
    one, other = (GvisorDriver(Path(home) / "run/runsc") for home in ("/home/a", "/home/b"))
    assert one._cgroup("analyst").path != other._cgroup("analyst").path  # pyright: ignore[reportPrivateUsage]
