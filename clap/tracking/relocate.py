"""Artifact locations of a SQLite store that was moved.

MLflow stores absolute locations of artifacts in the database. A store of this package keeps them in the folder
`mlartifacts` next to its file; after both were moved, copied or mounted elsewhere, the locations are updated.
"""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

log = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"
# Columns with locations inside the folder of artifacts.
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def artifact_root(database: Path) -> Path:
    """The folder of artifacts next to a SQLite file."""
    return database.parent / ARTIFACTS


def relocate_artifacts(database: Path) -> None:
    """Update the locations in a moved store, in one transaction; nothing is written if they are right.

    Raises:
        sqlite3.Error: the database cannot be read or written.
    """
    root = artifact_root(database)
    with closing(sqlite3.connect(database, timeout=60.0)) as connection:
        moved = list(find_moved(connection, root))
        if not moved:
            return
        with connection:
            for location in moved:
                for table, column in LOCATIONS:
                    connection.execute(
                        f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "
                        f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
                        {"old": location, "new": str(root)},
                    )
    log.info("%s was moved; its artifacts are now in %s, no longer in %s", database, root, ", ".join(moved))


def find_moved(connection: sqlite3.Connection, root: Path) -> Iterator[str]:
    """Recorded folders of artifacts that were moved to `root`: they are gone, or `root` has a copy of their runs."""
    for (location,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall():
        path = unquote(urlsplit(location).path) if str(location).startswith("file:") else str(location)
        if os.path.basename(path) != ARTIFACTS or path == str(root):
            continue
        if not os.path.exists(path):
            yield location
        elif root.is_dir() and not os.path.samefile(path, root):
            runs = "SELECT run_uuid FROM runs JOIN experiments USING (experiment_id) WHERE artifact_location = ?"
            if any((root / run_id).exists() for (run_id,) in connection.execute(runs, (location,))):
                yield location
