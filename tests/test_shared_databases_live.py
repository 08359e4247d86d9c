"""A shared database in real offices: gVisor, a door, psql as it is installed there."""

from __future__ import annotations

import pytest

from fixtures.live import Live
from tenure.errors import NotFound

PSQL = 'psql -X -A -t -h {host} -c "{statement}"'


def psql(live: Live, agent: str, host: str, statement: str) -> tuple[int, str]:
    done = live.tenure.agents(agent).exec(PSQL.format(host=host, statement=statement))
    return done.exit_code, (done.stdout + done.stderr).strip()


def test_a_granted_office_reads_a_shared_database_by_name_until_it_is_revoked(live: Live) -> None:
    name = live.name("sales")
    host = f"{name}.db"
    sales = live.tenure.databases.create(name)
    sales.sql(
        "CREATE TABLE orders (region text, amount int); INSERT INTO orders VALUES ('north', 1), ('south', 2), ('north', 3)"
    )
    asleep, awake, stranger = (live.agent(label).name for label in ("early", "late", "stranger"))
    live.tenure.agents(asleep).sleep()
    sales.grant(asleep, "read")
    sales.grant(awake, "write", tables={"orders": "region = 'north'"})

    # What was granted while an office slept is there when it wakes; while it is awake, at once.
    assert psql(live, asleep, host, "SELECT sum(amount), session_user FROM orders") == (0, f"6|office:{asleep}")
    assert psql(live, awake, host, "SELECT sum(amount), session_user FROM orders") == (0, f"4|office:{awake}")
    assert psql(live, awake, host, "INSERT INTO orders VALUES ('north', 5)") == (0, "INSERT 0 1")
    code, said = psql(live, awake, host, "INSERT INTO orders VALUES ('south', 5)")
    assert (code, "row-level security" in said) == (1, True)
    assert psql(live, stranger, host, "SELECT 1")[0] == 2
    assert psql(live, asleep, "db", "SELECT current_database()") == (0, "agent"), "its own is still its own"

    # It sleeps and wakes behind the offices' backs, and outlives a killed server.
    assert sales.sleep().state == "asleep"
    assert psql(live, asleep, host, "SELECT count(*) FROM orders") == (0, "4")
    live.kill()
    live.up()
    assert psql(live, asleep, host, "SELECT count(*) FROM orders") == (0, "4")

    # Over the API of its door it has the same rights.
    call = f"curl -sS -X POST $TENURE_URL/v1/databases/{name}/sql -H 'content-type: application/json' -d "
    body = '\'{"statement": "SELECT count(*) FROM orders"}\''
    assert '"rows":[[3]]' in live.tenure.agents(awake).exec(call + body).stdout.replace(" ", "")

    sales.revoke(asleep)
    assert psql(live, asleep, host, "SELECT 1")[0] == 2
    live.tenure.agents(awake).delete()
    assert sales.grants() == []
    assert sales.sql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'office:%'").rows == [[0]]
    sales.delete()
    with pytest.raises(NotFound):
        sales.show()
