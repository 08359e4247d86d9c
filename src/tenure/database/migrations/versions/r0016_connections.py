"""Named connections to databases and services elsewhere."""

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    pass
