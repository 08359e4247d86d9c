"""absurd's schema and the queue `work`: who may drive a run, until when.

The SQL comes from the `absurdctl` package, whose version is pinned; a newer absurd needs a migration of its own.
"""

import absurdctl  # pyright: ignore[reportMissingTypeStubs]
from alembic import op

revision = "0001"
down_revision = None

QUEUE = "work"


def upgrade() -> None:
    # Many statements in one string, with `%` in them: only the driver's own parameterless execute takes that.
    connection = op.get_bind().connection.dbapi_connection
    assert connection is not None
    connection.execute(absurdctl.BUNDLED_SCHEMA_SQL)
    connection.execute("select absurd.create_queue(%s)", (QUEUE,))
