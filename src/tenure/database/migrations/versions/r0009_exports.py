"""Exports of offices, and which agents keep a copy of their office elsewhere."""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute(
        """
        create table exports (
            id text primary key,
            agent text not null references agents (name) on delete cascade,
            base text, -- no foreign key: what it continues may be gone
            destination text not null default '', -- an s3:// address; empty for one that went to a client
            state text not null default 'running' check (state in ('running', 'done', 'failed')),
            key_id text,
            scheduled boolean not null default false,
            size_bytes bigint,
            error text,
            created_at timestamptz not null,
            finished_at timestamptz
        )
        """
    )
    op.execute("create index exports_of_agent on exports (agent, created_at)")
    op.execute(
        """
        create table export_schedules (
            agent text primary key references agents (name) on delete cascade,
            destination text not null,
            every_s double precision not null,
            full_every integer not null,
            chains_kept integer not null,
            key_id text, -- the key itself is in a file
            next_at timestamptz not null,
            failures integer not null default 0, -- in a row
            last_error text,
            created_at timestamptz not null
        )
        """
    )
