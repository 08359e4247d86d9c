"""Keys of snapshots: one that is asked for again, after a crash, is taken once."""

from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.execute("alter table snapshots add column key text")
    # What a crash left half taken or half deleted does not count.
    op.execute("create unique index snapshots_by_key on snapshots (agent, key) where stage = 'whole'")
