"""What is in the base image: packages, files, and the last touches. Changing anything here changes the image's id."""

from __future__ import annotations

from dataclasses import dataclass

PACKAGES = (
    # the door, and PID 1
    "openssh-server",
    "openssh-client",
    "tini",
    "sudo",
    # what work needs
    "python3",
    "python3-pip",
    "python3-venv",
    "python3-dev",
    "build-essential",
    "git",
    "postgresql-client",
    "ca-certificates",
    "curl",
    "jq",
    "rsync",
    "file",
    "zip",
    "unzip",
    "xz-utils",
    "zstd",
    # what people expect at a prompt
    "less",
    "nano",
    "procps",
)
AGENT_UID = 1000
PATH = "/home/agent/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
EGRESS_PROXY = "http://egress:3128"
"""Where the office's only way out is; `egress` is a name of the office's own hosts file."""
NO_PROXY = "localhost,127.0.0.0/8,::1,db,s3,api,egress"
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PATH": PATH,
    "PGHOST": "db",
    "PGUSER": "agent",
    "PGDATABASE": "agent",
    "http_proxy": EGRESS_PROXY,
    "https_proxy": EGRESS_PROXY,
    "HTTP_PROXY": EGRESS_PROXY,
    "HTTPS_PROXY": EGRESS_PROXY,
    "no_proxy": NO_PROXY,
    "NO_PROXY": NO_PROXY,
    # Programs that bring their own list of authorities must trust what the host trusts.
    "SSL_CERT_FILE": CA_BUNDLE,
    "REQUESTS_CA_BUNDLE": CA_BUNDLE,
    "CURL_CA_BUNDLE": CA_BUNDLE,
    "NODE_EXTRA_CA_CERTS": CA_BUNDLE,
}
"""The environment of everything that runs in an office: over SSH, in login shells, and (by the server) in commands."""

SSHD_CONFIG = f"""\
# Each connection is one `sshd -i`, started by the office's end of the door; nothing listens.
# The first value wins, so what the server writes into the directory comes before the defaults below.
Include /etc/ssh/sshd_config.d/*.conf
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/tenure/authorized_keys
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
StrictModes no
LogLevel ERROR
AllowTcpForwarding yes
AllowAgentForwarding yes
X11Forwarding no
PrintMotd no
AcceptEnv LANG LC_* COLORTERM
SetEnv {" ".join(f"{name}={value}" for name, value in ENVIRONMENT.items())}
Subsystem sftp internal-sftp
"""

SUDOERS = f"""\
Defaults env_keep += "{" ".join(name for name in ENVIRONMENT if name != "PATH")}"
Defaults !use_pty
agent ALL=(ALL:ALL) NOPASSWD: ALL
"""

PIP_CONFIG = f"""\
# The office is the agent's own machine: no virtual environment is needed to install things.
[global]
break-system-packages = true
disable-pip-version-check = true
root-user-action = ignore
cert = {CA_BUNDLE}
"""

GIT_CONFIG = """\
[user]
\tname = agent
\temail = agent@localhost
[init]
\tdefaultBranch = main
[safe]
\tdirectory = *
[advice]
\tdetachedHead = false
"""

APT_CONFIG = f"""\
APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "false";
APT::Periodic::Enable "0";
Acquire::Languages "none";
Acquire::http::Proxy "{EGRESS_PROXY}";
Acquire::https::Proxy "{EGRESS_PROXY}";
"""

PROFILE = "".join(f'export {name}="${{{name}:-{value}}}"\n' for name, value in ENVIRONMENT.items() if name != "PATH")

DPKG_CONFIG = """\
# A volume is snapshotted as a whole: a sync after every file only costs time.
force-unsafe-io
"""

DPKG_EXCLUDES = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
)

FINISH = f"""\
useradd --create-home --uid {AGENT_UID} --user-group --shell /bin/bash --password '*' agent
usermod --groups sudo,adm agent
install -d -o agent -g agent /home/agent/.local /home/agent/.local/bin
install -d -m 0755 /run/sshd /etc/tenure /var/lib/tenure
update-ca-certificates >/dev/null
rm -f /etc/ssh/ssh_host_* /etc/machine-id /var/lib/dbus/machine-id /etc/resolv.conf
: >/etc/machine-id
: >/etc/resolv.conf
echo office >/etc/hostname
find /var/log -type f -delete
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb /var/cache/debconf/*-old /root/.cache
"""
"""Runs in the image after the files are in place."""


@dataclass(frozen=True)
class ImageFile:
    """A file that is put into the image as it is."""

    path: str
    content: str
    mode: int = 0o644


FILES = (
    ImageFile("/etc/ssh/sshd_config", SSHD_CONFIG),
    ImageFile("/etc/sudoers.d/agent", SUDOERS, 0o440),
    ImageFile("/etc/pip.conf", PIP_CONFIG),
    ImageFile("/etc/gitconfig", GIT_CONFIG),
    ImageFile("/etc/apt/apt.conf.d/90tenure", APT_CONFIG),
    ImageFile("/etc/dpkg/dpkg.cfg.d/tenure", DPKG_CONFIG),
    ImageFile("/etc/profile.d/tenure.sh", PROFILE),
    ImageFile("/etc/default/locale", "LANG=C.UTF-8\n"),
)
