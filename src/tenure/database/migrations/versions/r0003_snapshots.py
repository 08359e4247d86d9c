"""Snapshots, and which one an office began as."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute("alter table agents add column origin text")  # the snapshot of which a fork is a clone
    op.execute(
        """
        create table snapshots (
            id text primary key,
            agent text not null references agents (name),
            name text,
            kind text not null check (kind in ('manual', 'before-restore', 'fork')),
            stage text not null default 'taking' check (stage in ('taking', 'whole', 'deleting')),
            image text not null,
            parent text, -- no foreign key: a snapshot may be deleted, and what came of it stays
            runs jsonb not null default '{}', -- {run id: seq of its journal} of all that were not over
            created_at timestamptz not null default clock_timestamp(),
            unique (agent, name)
        )
        """
    )
    op.execute("create index snapshots_of_agent on snapshots (agent, created_at)")
