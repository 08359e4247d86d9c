"""What S3 clients in an office need to find its objects, and a key, with no configuration of their own."""

from __future__ import annotations

from tenure.data.s3.access_keys import REGION, Lent

ENDPOINT_URL = "http://s3:9000"
CREDENTIALS_URL = "http://127.0.0.4:8700/v1/s3-credentials"
"""The office's `api`, by its address: clients ask none but loopback addresses for keys, and do not resolve names."""
TOKEN_FILE = "/etc/tenure/s3-door"
TOKEN = b"door"
"""No secret: some clients ask for a key only with a token, and the door takes any."""
OFFICE_ENVIRONMENT = {
    "AWS_ENDPOINT_URL_S3": ENDPOINT_URL,  # for S3 alone: an agent may use other services of AWS's
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": CREDENTIALS_URL,
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": TOKEN_FILE,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ALLOW_HTTP": "true",  # for those made of object_store
}


def shell_lines(lent: Lent) -> str:
    """To be read by a shell: `eval "$(curl -s …)"`."""
    return (
        f"export AWS_ACCESS_KEY_ID={lent.access_key_id}\n"
        f"export AWS_SECRET_ACCESS_KEY={lent.secret_access_key}\n"
        f"export AWS_SESSION_TOKEN={lent.token}\n"
    )
