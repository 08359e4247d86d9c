"""What programs of an office tell of themselves while they work."""

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute(
        """
        create table signals (
            id bigint generated always as identity,
            agent text not null references agents (name) on delete cascade,
            key text not null,
            checkpoint jsonb,
            checkpoints bigint not null default 0,
            progress text not null default '',
            progresses bigint not null default 0,
            beats bigint not null default 0, -- all that was ever told
            heartbeats bigint not null default 0,
            heartbeat_s double precision,
            question jsonb,
            primary key (agent, key)
        )
        """
    )
    op.execute("create index signals_of_agent on signals (agent, id)")
