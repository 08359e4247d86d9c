"""Snapshots that a run takes before and after its steps."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("alter table snapshots drop constraint snapshots_kind_check")
    op.execute(
        """
        alter table snapshots
            add constraint snapshots_kind_check
                check (kind in ('manual', 'before-restore', 'fork', 'before-step', 'after-step')),
            add column run_id text, -- how far its journal had come stands in `runs`
            add column node_id text,
            add column verified boolean not null default false,
            add constraint of_a_step check (
                (kind in ('before-step', 'after-step')) = (run_id is not null and node_id is not null)
            )
        """
    )
