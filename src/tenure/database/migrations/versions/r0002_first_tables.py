"""Agents, runs, the journal and the inbox."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute(
        """
        create table agents (
            name text primary key,
            number integer generated always as identity unique,
            image text not null,
            limits jsonb not null default '{}',
            egress jsonb not null default '[]',
            stage text not null check (stage in ('creating', 'asleep', 'deleting')),
            created_at timestamptz not null default clock_timestamp()
        )
        """
    )
    op.execute(
        """
        create table runs (
            id text primary key,
            agent text not null, -- no foreign key: what was done stays known after the agent is gone
            goal text not null,
            brain text not null,
            state text not null default 'queued'
                check (state in ('queued', 'running', 'parked', 'succeeded', 'failed', 'cancelled')),
            question text,
            last_seq integer not null default 0,
            task_id uuid, -- absurd's task: a claim on any other task cannot write to this run
            created_at timestamptz not null default clock_timestamp(),
            started_at timestamptz,
            finished_at timestamptz
        )
        """
    )
    op.execute("create index runs_of_agent on runs (agent, created_at desc)")
    op.execute("create index runs_by_time on runs (created_at desc)")
    op.execute(
        """
        create table journal (
            run_id text not null references runs (id) on delete cascade,
            seq integer not null,
            at timestamptz not null default clock_timestamp(),
            kind text not null,
            body jsonb not null,
            fence uuid, -- the claim under which a worker wrote it; null when the owner did
            primary key (run_id, seq)
        )
        """
    )
    op.execute(
        """
        create table inbox (
            id bigint generated always as identity primary key,
            agent text not null,
            key text not null,
            run_id text,
            subject text not null,
            body text not null,
            created_at timestamptz not null default clock_timestamp(),
            read_at timestamptz,
            unique (agent, key)
        )
        """
    )
    op.execute("create index inbox_unread on inbox (id) where read_at is null")
    op.execute(
        """
        create function refuse_journal_change() returns trigger language plpgsql as $$
        begin
            raise exception 'the journal is append-only';
        end $$
        """
    )
    op.execute(
        "create trigger journal_is_append_only before update on journal "
        "for each row execute function refuse_journal_change()"
    )
