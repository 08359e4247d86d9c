"""DuckDB for one hostile file: it reads that file and nothing else, in one thread, within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MEMORY = "96MB"
TEMP_BYTES = "1GB"


def open_engine(readable: Sequence[Path], temp: Path) -> Any:
    """A connection that reads `readable` only, and loads and installs nothing."""
    import duckdb

    connection: Any = duckdb.connect(":memory:")
    paths = ", ".join("'" + str(path).replace("'", "''") + "'" for path in readable)
    for statement in (
        f"SET allowed_paths=[{paths}]",
        "SET threads=1",
        f"SET memory_limit='{MEMORY}'",
        f"SET temp_directory='{str(temp).replace(chr(39), chr(39) * 2)}'",
        f"SET max_temp_directory_size='{TEMP_BYTES}'",
        "SET autoinstall_known_extensions=false",
        "SET autoload_known_extensions=false",
        "SET allow_community_extensions=false",
        "SET TimeZone='UTC'",
        "SET enable_external_access=false",
        "SET lock_configuration=true",
    ):
        connection.execute(statement)
    return connection
