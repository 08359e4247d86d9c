"""`python -m tenure.cli`: the `tenure` command where no script is installed."""

import sys

from tenure.cli import main

sys.exit(main())
