"""Shared buckets, and the keys of S3."""

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    pass
