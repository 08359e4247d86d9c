"""What programs of an office say that they took."""

from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    op.execute("alter table signals add column usage jsonb")
    op.execute("create index usages on journal (run_id, at) where kind = 'reported' and body->>'what' = 'usage'")
