"""Schedules and webhooks."""

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.execute(
        """
        create table schedules (
            id text primary key,
            name text not null,
            agent text not null references agents (name) on delete cascade,
            kind text not null,
            what jsonb not null,
            cron text,
            tz text not null default 'UTC',
            every_s integer,
            since timestamptz, -- from where `every_s` counts
            at timestamptz,
            missed text not null check (missed in ('one', 'all', 'none')),
            overlap text not null check (overlap in ('skip', 'queue', 'allow')),
            jitter_s integer not null default 0,
            failures_max integer not null,
            created_by text not null,
            created_at timestamptz not null,
            key text,
            next_at timestamptz,
            failures integer not null default 0, -- in a row
            paused_at timestamptz,
            reason text not null default '',
            over_at timestamptz, -- when its last due time was taken
            unique (agent, name),
            unique (agent, key)
        )
        """
    )
    op.execute("create index schedules_due on schedules (next_at) where next_at is not null and paused_at is null")
    op.execute(
        """
        create table firings (
            schedule text not null references schedules (id) on delete cascade,
            due_at timestamptz not null,
            fire_at timestamptz not null,
            state text not null default 'due' check (state in ('due', 'starting', 'begun', 'skipped', 'failed')),
            missed_since timestamptz,
            manual boolean not null default false,
            attempts integer not null default 0,
            until timestamptz, -- of 'starting': afterwards somebody else may
            began text not null default '',
            told text not null default '',
            settled_at timestamptz,
            primary key (schedule, due_at)
        )
        """
    )
    op.execute("create index firings_open on firings (fire_at) where state in ('due', 'starting')")
    op.execute(
        """
        create table webhooks (
            id text primary key,
            address text not null unique, -- the part of the URL that nobody guesses
            name text not null,
            agent text not null references agents (name) on delete cascade,
            signature text not null,
            keep_s bigint not null,
            created_at timestamptz not null,
            rotated_at timestamptz,
            received bigint not null default 0,
            repeated bigint not null default 0, -- known already
            refused bigint not null default 0, -- without a good signature
            last_received_at timestamptz,
            last_refused_at timestamptz,
            last_refusal text not null default '',
            unique (agent, name)
        )
        """
    )
