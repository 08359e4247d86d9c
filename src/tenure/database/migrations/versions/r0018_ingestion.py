"""Loads and pipelines of ingestion."""

from alembic import op

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.execute(
        """
        create table loads (
            id text primary key,
            agent text references agents (name) on delete cascade,
            database text, -- one of the shared ones
            into_table text not null,
            mode text not null,
            keys text[] not null default '{}',
            policy text not null,
            hints jsonb not null default '{}',
            again boolean not null default false,
            source text not null,
            name text not null, -- what the file was called
            version text, -- what the source said of the content before it was fetched
            key text, -- the caller's
            digest text, -- of the content, once all of it is here
            state text not null
                check (state in ('receiving', 'queued', 'running', 'waiting', 'done', 'failed', 'cancelled')),
            allowed boolean not null default false,
            attempts integer not null default 0,
            plan jsonb,
            size_bytes bigint not null default 0,
            rows_loaded bigint,
            rows_rejected bigint,
            columns jsonb,
            changes jsonb not null default '[]', -- asked for while it waits, made when it is done
            repeats text, -- the load that had done it before
            error jsonb,
            pipeline text,
            created_by text not null,
            created_at timestamptz not null,
            finished_at timestamptz,
            check ((agent is null) <> (database is null))
        )
        """
    )
    op.execute("create index loads_of_agent on loads (agent, created_at) where agent is not null")
    op.execute("create index loads_of_database on loads (database, created_at) where database is not null")
    op.execute("create index loads_of_pipeline on loads (pipeline, source) where pipeline is not null")
    op.execute("create unique index loads_by_key on loads (coalesce(agent, ''), coalesce(database, ''), key)")
    op.execute(
        """
        create table pipelines (
            name text primary key,
            agent text references agents (name) on delete cascade,
            database text,
            source text not null,
            into_table text, -- null: of the name of each file
            mode text not null,
            keys text[] not null default '{}',
            policy text not null,
            hints jsonb not null default '{}',
            every_s integer,
            cron text,
            tz text not null default 'UTC',
            on_arrival boolean not null default false,
            paused boolean not null default false,
            next_at timestamptz, -- null: at nobody's time
            failures integer not null default 0, -- in a row
            last_at timestamptz,
            last_error text,
            created_by text not null,
            created_at timestamptz not null,
            check ((agent is null) <> (database is null))
        )
        """
    )
