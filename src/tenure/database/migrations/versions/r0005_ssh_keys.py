"""SSH keys of principals, which the SSH gateway lets in."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.execute(
        """
        create table ssh_keys (
            id text primary key,
            principal text not null, -- whom the key stands for, as `identity.authorize.Principal` is written
            fingerprint text not null unique, -- one key stands for one principal only
            public_key text not null, -- algorithm and key in base64, without the comment
            comment text not null,
            created_at timestamptz not null default clock_timestamp(),
            last_used_at timestamptz
        )
        """
    )
