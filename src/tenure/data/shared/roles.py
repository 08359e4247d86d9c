"""What was granted, as roles and privileges of PostgreSQL: the cluster is made to match the grants, whatever was in it.

An agent's role is named as its principal is ("office:analyst"), owns nothing that is shared, and gets what it has from `readers`
or `writers` (a grant to all of the database) or table by table. Rows are limited by policies for the role, which no setting of a
session changes: a permissive one and a restrictive one, so that no other policy makes it more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, cast

import psycopg
from psycopg import sql

from tenure.data.shared.models import Limits
from tenure.data.shared.template import GRANTED, OWNER, READERS, WRITERS
from tenure.errors import Conflict, InvalidArgument
from tenure.identity.grants import Grant

ROLE_PREFIX = "office:"
IDLE_IN_TRANSACTION_S = 60.0
TRANSACTION_STATEMENTS = 10
"""A transaction may take as long as so many statements."""
POLICY_PREFIX = "tenure "
END_WAIT_MS = 5000
TABLE_KINDS = ["r", "p", "v", "m", "f"]
READ: LiteralString = "SELECT"
WRITE: LiteralString = "SELECT, INSERT, UPDATE, DELETE"
_CANNOT_LIMIT_ROWS = "Rows can be limited in tables only: make a view that shows them, and grant that."

LOCK_TIMEOUT_S = 10.0
"""How long a policy waits for those who use its table."""

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


@dataclass(frozen=True)
class RoleWanted:
    """One agent's role. `tables` has conditions by table, None for all rows; it is None itself for all of the database."""

    agent: str
    level: str
    tables: Mapping[str, str | None] | None

    @property
    def name(self) -> str:
        return role_of(self.agent)

    def digest(self, limits: Limits) -> str:
        """Changes when anything about it does."""
        parts = [self.agent, self.level, None if self.tables is None else dict(self.tables)]
        parts += [limits.connections, limits.statement_timeout_s, limits.temp_kib]
        return _digest(parts)


def role_of(agent: str) -> str:
    return ROLE_PREFIX + agent


def wanted_of(grant: Grant) -> RoleWanted:
    tables = grant.scope.get("tables")
    if tables is None:
        return RoleWanted(grant.principal.name, grant.level, None)
    rows = {name: None if of is None else of.get("rows") for name, of in tables.items()}
    return RoleWanted(grant.principal.name, grant.level, rows)


@dataclass(frozen=True)
class Table:
    """One of the owner's, as it is now."""

    oid: int
    kind: str
    schema: str
    name: str

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def has_rows(self) -> bool:
        """Whether policies can be on it."""
        return self.kind in ("r", "p")


@dataclass(frozen=True)
class Cluster:
    """Two ways into one running server: as the superuser, who sees nothing of what the owner may have put in PostgreSQL's way
    (`search_path` is empty), and as the owner, who says what a name and a condition mean."""

    superuser: Connection
    owner: Connection

    async def wanted(self, wanted: Sequence[RoleWanted], limits: Limits) -> str:
        """See `digest_of`."""
        names = {name for one in wanted for name in one.tables or ()}
        return digest_of(wanted, limits, await find_tables(self.owner, names))

    async def applied(self) -> str:
        return await applied(self.superuser)

    async def apply(self, wanted: Sequence[RoleWanted], limits: Limits) -> Sequence[str]:
        """Makes roles and privileges what is wanted, and nothing more; whose rights became others is disconnected. May be
        interrupted anywhere and is then done again, since what was applied is noted last. Returns what could not be done: a
        condition that PostgreSQL does not take any more, say, which gives nothing then. Raises `psycopg.Error`."""
        digest = await self.wanted(wanted, limits)
        tables = await find_tables(self.owner, {name for one in wanted for name in one.tables or ()})
        there = await self._roles()
        for role in there.keys() - {one.name for one in wanted}:
            await end(self.superuser, role)
        for one in wanted:
            changed = there.get(one.name) != one.digest(limits)
            if changed and one.name in there:
                await disconnect(self.superuser, one.name)
            if changed or one.tables is not None:
                async with self.superuser.transaction():
                    await _make(self.superuser, one, limits, tables, exists=one.name in there)
        problems = await _limit_rows(self.owner, wanted, tables)
        for one in wanted:
            comment = sql.SQL("COMMENT ON ROLE {} IS {}")
            await self.superuser.execute(comment.format(sql.Identifier(one.name), sql.Literal(one.digest(limits))))
        await self.superuser.execute("UPDATE tenure.state SET roles = %s", ("" if problems else digest,))
        return problems

    async def _roles(self) -> dict[str, str]:
        """Agents' roles that are there, with the digest of what was applied."""
        rows = await (
            await self.superuser.execute(
                "SELECT rolname::text, shobj_description(oid, 'pg_authid') FROM pg_roles WHERE starts_with(rolname::text, %s)",
                (ROLE_PREFIX,),
            )
        ).fetchall()
        return {name: comment or "" for name, comment in rows}


def digest_of(wanted: Sequence[RoleWanted], limits: Limits, tables: Mapping[str, Table]) -> str:
    """Of all roles, with the tables that they are about: one that was made anew under its old name is another."""
    return _digest(
        [sorted(one.digest(limits) for one in wanted), sorted((name, at.oid) for name, at in tables.items())]
    )


async def applied(superuser: Connection) -> str:
    """The digest that `Cluster.apply` left."""
    row = await (await superuser.execute("SELECT roles FROM tenure.state")).fetchone()
    return "" if row is None else str(row[0])


async def check_tables(owner: Connection, tables: Mapping[str, str | None]) -> None:
    """Raises `InvalidArgument` for a table that is not there, or a condition that PostgreSQL does not take."""
    found = await find_tables(owner, tables)
    for name, rows in tables.items():
        if name not in found:
            raise InvalidArgument(
                f"The owner has no table {name[:100]!r} in the database.",
                hint="Write it as table or schema.table, with quotes where SQL needs them.",
            )
        if rows is None:
            continue
        if not found[name].has_rows:
            raise InvalidArgument(f"{name[:100]} is no table.", hint=_CANNOT_LIMIT_ROWS)
        try:
            async with owner.transaction(force_rollback=True):
                await owner.execute(
                    sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(int(LOCK_TIMEOUT_S * 1000)))
                )
                await owner.execute(_policy(Policy("tenure check", OWNER, rows), found[name]), binary=True)
        except psycopg.errors.LockNotAvailable:
            raise Conflict(f"The table {name} is in use.", hint="Try again.") from None
        except psycopg.Error as error:
            told = error.diag.message_primary or str(error)
            raise InvalidArgument(f"PostgreSQL does not take the condition on the rows of {name}: {told}.") from None


async def find_tables(owner: Connection, names: Iterable[str]) -> dict[str, Table]:
    """The owner's tables and views of these names; those that are not there are left out."""
    found: dict[str, Table] = {}
    for name in names:
        try:
            row = await (
                await owner.execute(
                    "SELECT c.oid::int8, c.relkind::text, n.nspname::text, c.relname::text "
                    "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s) "
                    "AND c.relkind::text = ANY(%s) AND c.relowner = %s::regrole",
                    (name, TABLE_KINDS, OWNER),
                )
            ).fetchone()
        except (psycopg.DataError, psycopg.ProgrammingError):  # no name at all
            continue
        if row is not None:
            found[name] = Table(*row)
    return found


# --- roles --------------------------------------------------------------------------------------------------------------
async def disconnect(superuser: Connection, role: str) -> None:
    """Ends all connections of a role; returns when they are gone, or after `END_WAIT_MS` each."""
    await superuser.execute(
        "SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity WHERE usename = %s", (END_WAIT_MS, role)
    )


async def end(superuser: Connection, role: str) -> None:
    """Nothing of the role is left. The tables that it made in its own schema stay, as the owner's, in a schema of another name;
    functions and views go: they would do with the owner's rights what the agent wrote."""
    name, owner = sql.Identifier(role), sql.Identifier(OWNER)
    await superuser.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(name))
    await disconnect(superuser, role)
    async with superuser.transaction():
        await superuser.execute(_DROP_CODE.format(role=sql.Literal(role)))
        await superuser.execute(sql.SQL("REASSIGN OWNED BY {} TO {}").format(name, owner))
        await superuser.execute(sql.SQL("DROP OWNED BY {}").format(name))
        await superuser.execute(sql.SQL("DROP ROLE {}").format(name))
        await superuser.execute(_RETIRE_SCHEMA.format(role=sql.Literal(role)))


_DROP_CODE = sql.SQL(
    """DO $$
DECLARE what text;
BEGIN
    FOR what IN SELECT format('ROUTINE %s', oid::regprocedure) FROM pg_proc
        WHERE proowner = (SELECT oid FROM pg_roles WHERE rolname = {role})
    LOOP
        EXECUTE 'DROP ' || what || ' CASCADE';
    END LOOP;
    LOOP
        SELECT format('%s %s', CASE relkind WHEN 'm' THEN 'MATERIALIZED VIEW' ELSE 'VIEW' END, oid::regclass) INTO what
            FROM pg_class WHERE relkind IN ('v', 'm')
            AND relowner = (SELECT oid FROM pg_roles WHERE rolname = {role}) LIMIT 1;
        EXIT WHEN NOT FOUND;
        EXECUTE 'DROP ' || what || ' CASCADE';
    END LOOP;
END $$"""
)
_RETIRE_SCHEMA = sql.SQL(
    """DO $$
BEGIN
    IF to_regnamespace(quote_ident({role})) IS NULL THEN
        RETURN;
    ELSIF EXISTS (SELECT 1 FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident({role}))) THEN
        EXECUTE format('ALTER SCHEMA %I RENAME TO %I', {role}, {role} || to_char(clock_timestamp(), '-YYYYMMDDHH24MISS'));
    ELSE
        EXECUTE format('DROP SCHEMA %I CASCADE', {role});
    END IF;
END $$"""
)


async def _make(
    superuser: Connection, one: RoleWanted, limits: Limits, tables: Mapping[str, Table], *, exists: bool
) -> None:
    name = sql.Identifier(one.name)
    attributes = sql.SQL(
        "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT CONNECTION LIMIT {}"
    )
    verb = sql.SQL("ALTER ROLE") if exists else sql.SQL("CREATE ROLE")
    await superuser.execute(sql.SQL("{} {} {}").format(verb, name, attributes.format(sql.Literal(limits.connections))))
    await superuser.execute(sql.SQL("ALTER ROLE {} RESET ALL").format(name))
    for setting, value in (
        ("statement_timeout", f"{max(1, int(limits.statement_timeout_s * 1000))}ms"),
        ("idle_in_transaction_session_timeout", f"{int(IDLE_IN_TRANSACTION_S * 1000)}ms"),
        ("temp_file_limit", f"{limits.temp_kib}kB"),
    ):
        await superuser.execute(
            sql.SQL("ALTER ROLE {} SET {} = {}").format(name, sql.Identifier(setting), sql.Literal(value))
        )
    groups = {GRANTED} if one.tables is not None else {GRANTED, READERS if one.level == "read" else WRITERS}
    for group in (GRANTED, READERS, WRITERS):
        if group in groups:
            clause = sql.SQL("GRANT {} TO {} WITH ADMIN FALSE, INHERIT TRUE, SET FALSE")
        else:
            clause = sql.SQL("REVOKE {} FROM {}")
        await superuser.execute(clause.format(sql.Identifier(group), name))
    await _revoke(superuser, one.name)
    if one.tables is not None:
        await _grant_tables(superuser, one, tables)
    elif one.level == "write":
        await superuser.execute(
            sql.SQL("CREATE SCHEMA IF NOT EXISTS {} AUTHORIZATION {}").format(name, sql.Identifier(OWNER))
        )
        await superuser.execute(sql.SQL("REVOKE ALL ON SCHEMA {} FROM {}").format(name, sql.Identifier(READERS)))
        await superuser.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA {} TO {}").format(name, name))


async def _revoke(superuser: Connection, role: str) -> None:
    """Whatever it was given by name, its own schema included; not what it made itself."""
    found = await (
        await superuser.execute(
            "SELECT DISTINCT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, "
            "aclexplode(c.relacl) a WHERE a.grantee = %(role)s::regrole AND c.relowner <> a.grantee UNION ALL "
            "SELECT DISTINCT n.nspname::text, NULL FROM pg_namespace n, aclexplode(n.nspacl) a "
            "WHERE a.grantee = %(role)s::regrole",
            {"role": sql.Identifier(role).as_string()},
        )
    ).fetchall()
    for schema, relation in found:
        what = sql.SQL("SCHEMA {}").format(sql.Identifier(schema))
        if relation is not None:
            what = sql.SQL("{}").format(sql.Identifier(schema, relation))
        await superuser.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(what, sql.Identifier(role)))


async def _grant_tables(superuser: Connection, one: RoleWanted, tables: Mapping[str, Table]) -> None:
    """Those with all their rows; the others are granted with their policy. A table that is not there gives nothing."""
    name, its = sql.Identifier(one.name), {table: rows for table, rows in (one.tables or {}).items() if table in tables}
    for schema in sorted({tables[table].schema for table in its}):
        await superuser.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), name))
    for table, rows in its.items():
        if rows is None:
            await superuser.execute(_grant(one, tables[table]))
    if one.level != "write":
        return
    await superuser.execute(sql.SQL("GRANT SELECT, INSERT, UPDATE ON tenure.effects TO {}").format(name))
    sequences = await (
        await superuser.execute(  # those that fill columns of its tables (`serial`)
            "SELECT n.nspname::text, s.relname::text FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' "
            "JOIN pg_namespace n ON n.oid = s.relnamespace WHERE d.refclassid = 'pg_class'::regclass AND d.deptype = 'a' "
            "AND d.refobjid = ANY(%s::oid[])",
            ([tables[table].oid for table in its],),
        )
    ).fetchall()
    for schema, sequence in sequences:
        await superuser.execute(
            sql.SQL("GRANT USAGE ON SEQUENCE {} TO {}").format(sql.Identifier(schema, sequence), name)
        )


def _grant(one: RoleWanted, table: Table) -> sql.Composed:
    rights = READ if one.level == "read" else WRITE
    return sql.SQL("GRANT {} ON {} TO {}").format(sql.SQL(rights), table.identifier, sql.Identifier(one.name))


# --- rows ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Policy:
    """One on one table."""

    title: str
    role: str
    rows: str
    restrictive: bool = False


def policies_of(table: str, wanted: Sequence[RoleWanted], *, ours: bool) -> list[Policy]:
    """Those of a table of which somebody has some rows only. Where it was us who switched row security on (`ours`), the others
    see all rows as before; where the owner did, the owner's policies say what they see."""
    found: list[Policy] = []
    for one in wanted:
        rows = (one.tables or {}).get(table)
        if rows is not None:
            found.append(Policy(f"{POLICY_PREFIX}{one.name}", one.name, rows))
            found.append(Policy(f"{POLICY_PREFIX}{one.name} only", one.name, rows, restrictive=True))
        elif ours and one.tables is not None and table in one.tables:
            found.append(Policy(f"{POLICY_PREFIX}{one.name}", one.name, "true"))
    return [*found, Policy(f"{POLICY_PREFIX}{READERS}", READERS, "true")] if ours else found


async def _limit_rows(owner: Connection, wanted: Sequence[RoleWanted], tables: Mapping[str, Table]) -> list[str]:
    """A table at a time in one transaction, so that nobody sees more rows or fewer in between; and as the owner, whose text the
    conditions are. Returns what could not be done: whose rows those are has not got the table then."""
    limited = {name for one in wanted for name, rows in (one.tables or {}).items() if rows is not None}
    found = {name: tables[name] for name in limited if name in tables and tables[name].has_rows}
    kept = await (await owner.execute("SELECT relation::int8, switched, policies FROM tenure.row_limited")).fetchall()
    before = {oid: (switched, digest) for oid, switched, digest in kept}
    problems: list[str] = []
    for oid in before.keys() - {table.oid for table in found.values()}:
        async with owner.transaction():
            await _limit_no_more(owner, oid, switched=before[oid][0])
    for name, table in found.items():
        try:
            async with owner.transaction():
                await owner.execute(
                    sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(int(LOCK_TIMEOUT_S * 1000)))
                )
                await _limit_table(owner, name, table, wanted, before.get(table.oid))
        except psycopg.OperationalError as error:
            if error.sqlstate is None:
                raise
            problems.append(f"{name}: {error.diag.message_primary or error}")
        except psycopg.Error as error:
            problems.append(f"{name}: {error.diag.message_primary or error}")
    return problems


async def _limit_table(
    owner: Connection, name: str, table: Table, wanted: Sequence[RoleWanted], before: tuple[bool, str] | None
) -> None:
    switched = before[0] if before is not None else not await _is_secured(owner, table)
    policies = policies_of(name, wanted, ours=switched)
    digest = _digest([repr(policy) for policy in policies])
    if before != (switched, digest):
        await _drop_policies(owner, table.oid)
        if switched:
            await owner.execute(sql.SQL("ALTER TABLE {} ENABLE ROW LEVEL SECURITY").format(table.identifier))
        for policy in policies:
            await owner.execute(_policy(policy, table), binary=True)
        await owner.execute(
            "INSERT INTO tenure.row_limited VALUES (%s, %s, %s) ON CONFLICT (relation) DO UPDATE "
            "SET switched = excluded.switched, policies = excluded.policies",
            (table.oid, switched, digest),
        )
    for one in wanted:
        if (one.tables or {}).get(name) is not None:
            await owner.execute(_grant(one, table))


async def _is_secured(owner: Connection, table: Table) -> bool:
    row = await (await owner.execute("SELECT relrowsecurity FROM pg_class WHERE oid = %s", (table.oid,))).fetchone()
    return row is not None and bool(row[0])


async def _limit_no_more(owner: Connection, oid: int, *, switched: bool) -> None:
    await _drop_policies(owner, oid)
    row = await (
        await owner.execute(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.oid = %s AND NOT EXISTS (SELECT 1 FROM pg_policy WHERE polrelid = c.oid)",
            (oid,),
        )
    ).fetchone()
    if switched and row is not None:
        await owner.execute(sql.SQL("ALTER TABLE {} DISABLE ROW LEVEL SECURITY").format(sql.Identifier(*row)))
    await owner.execute("DELETE FROM tenure.row_limited WHERE relation = %s", (oid,))


async def _drop_policies(owner: Connection, oid: int) -> None:
    found = await (
        await owner.execute(
            "SELECT p.polname::text, n.nspname::text, c.relname::text FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid "
            "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s AND starts_with(p.polname::text, %s)",
            (oid, POLICY_PREFIX),
        )
    ).fetchall()
    for policy, *table in found:
        await owner.execute(sql.SQL("DROP POLICY {} ON {}").format(sql.Identifier(policy), sql.Identifier(*table)))


def _policy(policy: Policy, table: Table) -> sql.Composed:
    """The condition is put in as it is: run this by the extended protocol, which takes one statement, as who may say it."""
    condition = sql.SQL(cast(LiteralString, policy.rows.replace("{", "{{").replace("}", "}}"))).format()
    return sql.SQL("CREATE POLICY {} ON {} AS {} FOR ALL TO {} USING (\n{}\n) WITH CHECK (\n{}\n)").format(
        sql.Identifier(policy.title),
        table.identifier,
        sql.SQL("RESTRICTIVE") if policy.restrictive else sql.SQL("PERMISSIVE"),
        sql.Identifier(policy.role),
        condition,
        condition,
    )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
