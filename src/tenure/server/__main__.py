"""`python -m tenure.server [--foreground] [--stop-at-once]`: the server process itself."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":
    # Until the server handles signals itself, nothing is there to be stopped: Ctrl-C ends it without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    from tenure.server.build import build
    from tenure.server.main import main

    sys.exit(main(build))
