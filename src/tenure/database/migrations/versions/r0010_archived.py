"""Which offices lie in S3 only."""

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("alter table agents add column archived jsonb -- see `tenure.offices.models.Archived`; null: it is here")
