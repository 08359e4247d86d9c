"""How an agent's brain thinks: what its runs without a playbook begin with."""

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.execute("alter table agents add column brain jsonb")  # a `BrainSettings`; null: none was chosen
