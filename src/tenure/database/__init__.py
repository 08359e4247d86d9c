"""The control database: agents, runs and their journals, the inbox, and absurd's queue of claims.

`migrate(dsn)` brings the schema to this version; `ControlDatabase` is how everything else talks to it.
"""

from tenure.database.connect import ControlDatabase
from tenure.database.migrate import migrate

__all__ = ["ControlDatabase", "migrate"]
