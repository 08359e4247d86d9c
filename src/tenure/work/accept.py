"""What has to hold in the end of a run, as it is asked for, and as the engine knows it."""

from __future__ import annotations

from tenure import wire
from tenure.work.plan import Check, FileCheck, HttpCheck, RunCheck, SqlCheck


def check_of(check: wire.RunCheck) -> Check:
    if check.run is not None:
        return RunCheck(script=check.run)
    if check.sql is not None:
        return SqlCheck(statement=check.sql, equals=check.equals)
    if check.file is not None:
        return FileCheck(path=check.file)
    assert check.http is not None
    return HttpCheck(url=check.http, status=check.status, contains=check.contains)
