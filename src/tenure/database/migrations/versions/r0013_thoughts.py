"""What brains thought, and asked people, found without reading whole journals."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.execute("create index thoughts on journal (run_id, at) where kind = 'thinking'")
    op.execute("create index questions on journal (run_id) where kind = 'asked'")
