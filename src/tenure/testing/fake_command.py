"""Runs one command of `FakeHands`, as a process of its own: `python fake_command.py JOB`. Imports little: it starts often."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

POLL_S = 0.01
GRACE_S = 5.0


def main(job: str) -> None:
    ending: list[float] = []

    def end(*_: object) -> None:
        ending.append(time.monotonic())

    signal.signal(signal.SIGTERM, end)
    with open(f"{job}/command.json") as file:
        command = json.load(file)
    began = time.monotonic()
    process = subprocess.Popen(["bash", "-c", command["script"]], cwd=command["cwd"], start_new_session=True)
    with open(f"{job}/command.pid", "w") as file:
        file.write(str(process.pid))
    timed_out = False
    while process.poll() is None:
        now = time.monotonic()
        if not ending and command["timeout_s"] is not None and now > began + command["timeout_s"]:
            timed_out = True
            end()
        if ending:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL if now > ending[0] + GRACE_S else signal.SIGTERM)
        time.sleep(POLL_S)
    code = process.returncode
    ended = {"exit_code": code if code >= 0 else 128 - code, "timed_out": timed_out}
    with open(f"{job}/exit.new", "w") as file:
        json.dump(ended | {"duration_s": time.monotonic() - began}, file)
    os.rename(f"{job}/exit.new", f"{job}/exit.json")


main(sys.argv[1])
