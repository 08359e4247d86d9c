"""Shared databases, and their snapshots."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.execute(
        """
        create table shared_databases (
            name text primary key,
            number bigint generated always as identity,
            limits jsonb not null,
            stage text not null,
            created_at timestamptz not null default now(),
            origin text,
            backup jsonb
        )
        """
    )
    op.execute(
        """
        create table shared_snapshots (
            id text primary key,
            database text not null references shared_databases (name),
            name text,
            kind text not null,
            stage text not null default 'taking',
            created_at timestamptz not null default clock_timestamp(),
            unique (database, name)
        )
        """
    )
