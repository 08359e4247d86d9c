"""Named connections to databases and services elsewhere."""

from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.execute(
        """
        create table connections (
            name text primary key,
            id text not null unique,
            target jsonb not null,
            private boolean not null,
            ca text not null,
            created_at timestamptz not null default now()
        )
        """
    )
