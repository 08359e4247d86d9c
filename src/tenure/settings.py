"""Where Tenure keeps things and what it was told by the environment. No other module reads `TENURE_*` variables."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

DEFAULT_HOME = Path("/var/lib/tenure")
DEFAULT_PORT = 7800
DEFAULT_SSH_PORT = 2222
DEFAULT_S3_PORT = 9000
DEFAULT_SSH_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Settings:
    """Everything below `home`; a second server with another home on the same machine does not meet the first."""

    home: Path = DEFAULT_HOME
    port: int = DEFAULT_PORT
    ssh_port: int = 0
    """Of the SSH gateway; 0: there is none. `from_environment` takes `DEFAULT_SSH_PORT` when nothing is said."""
    ssh_host: str = DEFAULT_SSH_HOST
    """Address that the SSH gateway listens on."""
    s3_port: int = 0
    """Of the S3 API for clients outside, on 127.0.0.1; 0: it is not there. As with `ssh_port`."""
    database_url: str | None = None
    """DSN of a PostgreSQL for the control database; None means the embedded one under `home`."""
    pool_bytes: int = 40 * 1024**3
    """Size of the sparse loop file; it takes disk only as it fills."""
    url: str | None = None
    """For clients: address of the server when it is not to be found by its socket under `home`."""
    token: str | None = field(default=None, repr=False)
    """For clients: bearer token, instead of the one in `token_file`."""
    snapshots_last: int = 10
    """Automatic snapshots kept of each agent: the newest, …"""
    snapshots_hourly: int = 24
    """… the newest of each of the last hours, …"""
    snapshots_daily: int = 7
    """… and of each of the last days. See `tenure.offices.retention`."""
    pause_after_s: float | None = 300.0
    """An office that nobody uses for so long is paused, …"""
    hibernate_after_s: float | None = 1800.0
    """… hibernated, …"""
    stop_after_s: float | None = None
    """… and stopped; None: never. An agent may have a policy of its own. See `tenure.offices.rest`."""
    debug: bool = False
    """The CLI shows stack traces."""
    export_key: str | None = field(default=None, repr=False)
    """For the command line: key of encrypted exports, instead of one in a file."""

    embeddings_model: str | None = None
    """What search in databases is done with beside the embedder that is always there: a model's name, …"""
    embeddings_url: str | None = None
    """… the server that has it, if it is not OpenAI, …"""
    embeddings_key_env: str | None = None
    """… the name of the variable that its key is in, …"""
    embeddings_dimensions: int | None = None
    """… and how long its vectors are to be, if they are to be shorter than by themselves."""

    @classmethod
    def from_environment(cls, environ: dict[str, str] | None = None) -> Settings:
        """Reads `TENURE_HOME`, `TENURE_PORT`, `TENURE_SSH_PORT`, `TENURE_SSH_HOST`, `TENURE_S3_PORT`, `TENURE_DATABASE_URL`,
        `TENURE_POOL_GB`, `TENURE_URL`, `TENURE_TOKEN`,
        `TENURE_SNAPSHOTS_LAST`, `_HOURLY` and `_DAILY`, `TENURE_PAUSE_AFTER_S`,
        `TENURE_HIBERNATE_AFTER_S` and `TENURE_STOP_AFTER_S` (0: never), `TENURE_DEBUG`,
        `TENURE_EXPORT_KEY`,
        `TENURE_EMBEDDINGS_MODEL`, `_URL`, `_KEY_ENV` and `_DIMENSIONS`."""
        env = dict(os.environ) if environ is None else environ
        return cls(
            home=Path(env.get("TENURE_HOME") or DEFAULT_HOME).absolute(),
            port=int(env.get("TENURE_PORT") or DEFAULT_PORT),
            ssh_port=int(env.get("TENURE_SSH_PORT") or DEFAULT_SSH_PORT),
            ssh_host=env.get("TENURE_SSH_HOST") or DEFAULT_SSH_HOST,
            s3_port=int(env.get("TENURE_S3_PORT") or DEFAULT_S3_PORT),
            database_url=env.get("TENURE_DATABASE_URL") or None,
            pool_bytes=int(float(env.get("TENURE_POOL_GB") or 40) * 1024**3),
            url=env.get("TENURE_URL") or None,
            token=env.get("TENURE_TOKEN") or None,
            snapshots_last=int(env.get("TENURE_SNAPSHOTS_LAST") or 10),
            snapshots_hourly=int(env.get("TENURE_SNAPSHOTS_HOURLY") or 24),
            snapshots_daily=int(env.get("TENURE_SNAPSHOTS_DAILY") or 7),
            pause_after_s=_period_s(env, "TENURE_PAUSE_AFTER_S", cls.pause_after_s),
            hibernate_after_s=_period_s(env, "TENURE_HIBERNATE_AFTER_S", cls.hibernate_after_s),
            stop_after_s=_period_s(env, "TENURE_STOP_AFTER_S", cls.stop_after_s),
            debug=env.get("TENURE_DEBUG", "") not in ("", "0"),
            export_key=env.get("TENURE_EXPORT_KEY") or None,
            embeddings_model=env.get("TENURE_EMBEDDINGS_MODEL") or None,
            embeddings_url=env.get("TENURE_EMBEDDINGS_URL") or None,
            embeddings_key_env=env.get("TENURE_EMBEDDINGS_KEY_ENV") or None,
            embeddings_dimensions=int(env.get("TENURE_EMBEDDINGS_DIMENSIONS") or 0) or None,
        )

    # --- secrets and sockets of the server ---------------------------------------------------------------------
    @cached_property
    def token_file(self) -> Path:
        return self.home / "token"

    @cached_property
    def api_socket(self) -> Path:
        return self.home / "run" / "api.sock"

    @cached_property
    def run_dir(self) -> Path:
        """Sockets and pid files: nothing here survives, or needs to survive, a reboot."""
        return self.home / "run"

    @cached_property
    def pid_file(self) -> Path:
        return self.run_dir / "server.pid"

    @cached_property
    def logs_dir(self) -> Path:
        return self.home / "logs"

    @cached_property
    def keys_dir(self) -> Path:
        """The owner's SSH key for office doors, the SSH gateway's own key, and what seals access keys of S3."""
        return self.home / "keys"

    @cached_property
    def s3_key_file(self) -> Path:
        """What seals access keys of S3 in the database, and what short-lived ones are made of."""
        return self.keys_dir / "s3.key"

    # --- PostgreSQL ----------------------------------------------------------------------------------------------
    @cached_property
    def postgres_tree(self) -> Path:
        """Copy of the wheel's PostgreSQL, readable by the users that its servers run as."""
        return self.home / "postgresql"

    @cached_property
    def control_dir(self) -> Path:
        """Data directory of the embedded control database."""
        return self.home / "control"

    # --- pool: images and offices ----------------------------------------------------------------------------------
    @cached_property
    def pool_file(self) -> Path:
        return self.home / "pool.btrfs"

    @cached_property
    def pool_dir(self) -> Path:
        """Where the btrfs pool is mounted (or a plain directory, with the directory volume driver)."""
        return self.home / "pool"

    @cached_property
    def images_dir(self) -> Path:
        return self.pool_dir / "images"

    @cached_property
    def volumes_dir(self) -> Path:
        return self.pool_dir / "volumes"

    @cached_property
    def snapshots_dir(self) -> Path:
        return self.pool_dir / "snapshots"

    @cached_property
    def shared_dir(self) -> Path:
        """Volumes of shared databases, with their snapshots."""
        return self.pool_dir / "shared"

    @cached_property
    def memory_dir(self) -> Path:
        """Memory images of hibernated offices."""
        return self.pool_dir / "memory"

    # --- sandboxes ---------------------------------------------------------------------------------------------------
    @cached_property
    def runsc_root(self) -> Path:
        return self.home / "run" / "runsc"

    @cached_property
    def officed_dir(self) -> Path:
        """Directory with the static `officed` binary; mounted read-only into every office at `/.tenure/bin`."""
        return self.home / "officed"

    def doorway(self, agent: str) -> Path:
        """The office's doorway: host sockets that it may connect to; mounted into it at `/.tenure/door`."""
        return self.run_dir / "doors" / agent


def _period_s(env: dict[str, str], name: str, default_s: float | None) -> float | None:
    if not env.get(name):
        return default_s
    return float(env[name]) or None
