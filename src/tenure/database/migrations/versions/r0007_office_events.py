"""What was decided about an office, and why."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute(
        """
        create table office_events (
            id bigint generated always as identity primary key,
            agent text not null references agents (name) on delete cascade,
            at timestamptz not null default clock_timestamp(),
            what text not null,
            reason text not null,
            evidence jsonb not null default '{}'
        )
        """
    )
    op.execute("create index office_events_of_agent on office_events (agent, id desc)")
