"""`python -m tenure.server [--foreground] [--stop-at-once]`: the server process itself."""

from __future__ import annotations

import sys

from tenure.server.build import build
from tenure.server.main import main

if __name__ == "__main__":
    sys.exit(main(build))
