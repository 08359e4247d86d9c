"""Shared buckets, and the keys of S3."""

from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    _shared_buckets()
    _access_keys()


def _shared_buckets() -> None:
    op.execute(
        """
        create table buckets (
            name text primary key,
            quota_bytes bigint not null,
            backend text not null, -- empty: a volume of ours
            stage text not null,
            created_at timestamptz not null default now()
        )
        """
    )


def _access_keys() -> None:
    """Long-lived keys, and which short-lived ones hold. Both go with the agent: its name's next bearer has none of them."""
    op.execute(
        """
        create table s3_keys (
            id text primary key,
            principal text not null,
            agent integer references agents (number) on delete cascade, -- null: not an office's
            sealed bytea not null, -- the secret, for the key under TENURE_HOME
            buckets jsonb not null default '{}', -- level by bucket; empty: all that the principal may
            comment text not null default '',
            created_by text not null,
            created_at timestamptz not null default clock_timestamp(),
            expires_at timestamptz,
            last_used_at timestamptz
        )
        """
    )
    op.execute("create index s3_keys_of_principal on s3_keys (principal)")
    op.execute(
        """
        create table s3_generations (
            agent integer primary key references agents (number) on delete cascade,
            generation integer not null default 1
        )
        """
    )
