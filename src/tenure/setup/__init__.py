"""Set-up of the machine and its diagnosis, as code of the package: `tenure setup` and `tenure doctor` call these."""

from tenure.setup.checks import Check, doctor, fix
from tenure.setup.image import Image, current_image
from tenure.setup.installer import become_root, install, run
from tenure.setup.pool import ensure_pool_mounted
from tenure.setup.progress import ConsoleProgress, SetupProgress, SilentProgress
from tenure.setup.steps import Step

__all__ = [
    "Check",
    "ConsoleProgress",
    "Image",
    "SetupProgress",
    "SilentProgress",
    "Step",
    "become_root",
    "current_image",
    "doctor",
    "ensure_pool_mounted",
    "fix",
    "install",
    "run",
]
