"""`python -m tenure.setup`: what set-up becomes when it starts itself again as root."""

from __future__ import annotations

import sys

from rich.console import Console

from tenure.errors import TenureError
from tenure.settings import Settings
from tenure.setup.installer import install

if __name__ == "__main__":
    try:
        install(Settings.from_environment(), Console())
    except TenureError as error:
        Console(stderr=True).print(f"[red]{type(error).__name__}[/]: {error.message}\n{error.hint}", highlight=False)
        sys.exit(error.exit_code)
