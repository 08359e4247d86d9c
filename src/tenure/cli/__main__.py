"""`python -m tenure.cli`: the `tenure` command where no script is installed."""

import sys

try:
    from tenure.cli import main

    sys.exit(main())
except KeyboardInterrupt:
    sys.exit(130)
