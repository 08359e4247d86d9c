"""Grants: who may use what is nobody's own."""

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.execute(
        """
        create table grants (
            principal text not null,
            kind text not null,
            name text not null,
            level text not null,
            scope jsonb not null default '{}',
            created_by text not null,
            created_at timestamptz not null default now(),
            expires_at timestamptz,
            primary key (principal, kind, name)
        )
        """
    )
    op.execute("create index grants_of_resource on grants (kind, name)")
