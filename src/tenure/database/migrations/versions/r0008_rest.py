"""How an office rests: its own policy, and until when it is to stay awake."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute(
        """
        alter table agents
            add column rest jsonb not null default '{}', -- seconds by `RestPolicy` field; 0: never; missing: the server's
            add column lease_until timestamptz,
            add column lease_reason text
        """
    )
