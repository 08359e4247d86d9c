"""The extensions that whoever owns an office's database may add to it, though it is no superuser.

PostgreSQL lets a database's owner add an extension that its control file calls *trusted*, and runs its script as the superuser.
So what is offered is decided by a directory of control files of our own, the only one that an office's server looks into
(`extension_control_path`): what is not in it does not exist for the office, and what is in it, plain `CREATE EXTENSION` adds.

Offered are those that PostgreSQL itself calls trusted, pgvector, and of the rest of contrib what reaches nothing outside of
the database and evaluates nothing in its script that an agent could have put into the script's way (read before adding one).
Never those that reach files or the network (dblink, postgres_fdw, file_fdw), that start workers (pg_prewarm), or that show or
change raw pages (pageinspect, pg_surgery, pg_walinspect, pg_logicalinspect); not those for superusers alone (amcheck,
pg_buffercache).
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

OFFERED = (
    "autoinc",
    "bloom",
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "dict_int",
    "dict_xsyn",
    "earthdistance",
    "fuzzystrmatch",
    "hstore",
    "insert_username",
    "intagg",
    "intarray",
    "isn",
    "lo",
    "ltree",
    "moddatetime",
    "pg_freespacemap",
    "pg_stat_statements",
    "pg_trgm",
    "pg_visibility",
    "pgrowlocks",
    "pgstattuple",
    "plpgsql",
    "refint",
    "seg",
    "tablefunc",
    "tcn",
    "tsm_system_rows",
    "tsm_system_time",
    "unaccent",
    "vector",
)
MADE_READY = (
    "vector",
    "pg_trgm",
    "btree_gin",
    "btree_gist",
    "citext",
    "cube",
    "earthdistance",
    "fuzzystrmatch",
    "hstore",
    "intarray",
    "ltree",
    "tablefunc",
    "unaccent",
)
"""In every shared database from the beginning: who was granted one does not own it, so could not add them."""
TRUSTED = "trusted = true"
DIGEST = hashlib.sha256("\n".join(OFFERED).encode()).hexdigest()[:8]
"""Of what is offered: a tree that offers something else is not this version's."""


def offer(source: Path, target: Path) -> None:
    """Fills the missing directory `target` with control files and scripts of what is offered, from `source`. What a build of
    PostgreSQL does not have is left out. Raises `OSError`."""
    target.mkdir(parents=True)
    for name in OFFERED:
        control = source / f"{name}.control"
        if not control.exists():
            continue
        lines = control.read_text().splitlines()
        kept = [line for line in lines if line.split("=")[0].strip() != "trusted"]
        (target / control.name).write_text("\n".join([*kept, TRUSTED]) + "\n")
        for script in source.glob(f"{name}--*.sql"):
            shutil.copyfile(script, target / script.name)
