"""What the exit status of `tenure` means. docs/exit-codes.md is written from here and from `tenure.errors`."""

from __future__ import annotations

RUN_FAILED = 10
RUN_PARKED = 11
RUN_CANCELLED = 12
INTERRUPTED = 130
BROKEN_PIPE = 141

MEANINGS = {
    0: "done",
    1: "something failed that has no code of its own (`error:` on stderr says what)",
    2: "the command line, a name, an argument or a playbook is wrong",
    3: "there is no such agent, run, object, file or message",
    4: "it exists already, or is in a state that does not allow this now",
    5: "not allowed: wrong token, missing permission, address that the office may not reach",
    6: "no server answers",
    7: "the machine is not set up: see `tenure doctor`",
    8: "it took longer than it was allowed to",
    9: "a disk is full",
    RUN_FAILED: "the followed run failed",
    RUN_PARKED: "the followed run is parked and asks a person: `tenure runs show`, then `tenure runs resume`; "
    "or a load asks: `tenure loads show`, then `tenure loads answer`",
    RUN_CANCELLED: "the followed run was cancelled",
    INTERRUPTED: "interrupted with Ctrl-C (a run goes on: `tenure runs follow`)",
    BROKEN_PIPE: "whoever read the output went away (`tenure … | head`)",
}
