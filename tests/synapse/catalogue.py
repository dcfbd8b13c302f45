"""Every table and column of a real Synapse stands in roomkeeper's list, and what the list says of them is so.

The list is `src/store/tables/list.rs`, a row a table: what nobody has decided about fails here, by name.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import database
from releases import REPOSITORY, Release, python_of
from server import Server

LIST = REPOSITORY / "src" / "store" / "tables" / "list.rs"
ROW = re.compile(r'\btable\(\s*"(\w+)",\s*"([^"]*)"\s*\)((?:\s*\.\w+\((?:"[^"]*"|[^()"])*\))*)')
NUMBER = re.compile(r"\.(since|until)\((\d+)\)")
# The list was not read when it has fewer rows.
FEWEST = 150
# Kept beside its tables by SQLite.
INTERNAL = ("sqlite_sequence", "sqlite_stat1", "sqlite_stat4")


@dataclass
class Table:
    name: str
    columns: set
    since: int = 0
    until: int = 10**6
    on_postgres: bool = False
    is_synapses: bool = True
    refers: bool = False
    met: set = field(default_factory=set)

    def may_be_in(self, release: Release, is_file: bool) -> bool:
        return self.is_synapses and self.since <= release.schema < self.until and not (self.on_postgres and is_file)

    def must_be_in(self, release: Release, is_file: bool) -> bool:
        """Releases of one schema add to it as they go (V-3)."""
        return self.may_be_in(release, is_file) and (not self.since or self.since < release.schema)


def read() -> dict[str, Table]:
    found = {}
    for name, columns, rest in ROW.findall(LIST.read_text()):
        # Rust joins lines that end in a backslash, without the spaces that follow.
        columns = {column.split(":")[0].lower() for column in re.sub(r"\\\n\s*", "", columns).split(" ")}
        schemas = {word: int(number) for word, number in NUMBER.findall(rest)}
        found[name] = Table(
            name, columns, **schemas, on_postgres=".on_postgres()" in rest, is_synapses=".of_others()" not in rest,
            refers=".refers()" in rest,
        )
    if len(found) < FEWEST:
        raise RuntimeError(f"{LIST} was not understood: {len(found)} rows")
    return found


def columns_of(rows, session, table) -> set:
    if rows.is_file:
        return {row[1].lower() for row in session.execute(f'PRAGMA table_info("{table}")').fetchall()}
    words = "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = ?"
    return {name.lower() for (name,) in session.execute(words, (table,)).fetchall()}


def referring(rows, session) -> set:
    """The tables with a foreign key to `events`, to `rooms`, or to what holds rooms of which the state is not whole."""
    if rows.is_file:
        words = (
            "SELECT DISTINCT m.name FROM sqlite_master m, pragma_foreign_key_list(m.name) k"
            " WHERE m.type = 'table' AND lower(k.\"table\") IN ('events', 'rooms', 'partial_state_rooms')"
        )
    else:
        words = (
            "SELECT DISTINCT c.relname FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid"
            " WHERE k.contype = 'f' AND k.confrelid::regclass::text IN ('events', 'rooms', 'partial_state_rooms')"
        )
    return {name for (name,) in session.execute(words).fetchall()}


def troubles(release: Release, rows) -> list[str]:
    """Where this release's database and the list do not agree."""
    known, found = read(), []
    with rows.session() as session:
        there = [table for table in rows.tables(session) if table not in INTERNAL]
        for name in there:
            if name not in known:
                found.append(f"table {name}: nobody has decided about it ({LIST.name})")
                continue
            for column in sorted(columns_of(rows, session, name) - known[name].columns):
                found.append(f"column {name}.{column}: nobody has decided about it ({LIST.name})")
            if not known[name].may_be_in(release, rows.is_file):
                found.append(f"table {name}: it is there, and the list says that schema {release.schema} has none")
        refer = referring(rows, session)
    for table in known.values():
        if table.must_be_in(release, rows.is_file) and table.name not in there:
            found.append(f"table {table.name}: it stands in the list and is not there")
    for name in sorted(refer):
        if name in known and not known[name].refers:
            found.append(f"table {name}: it refers to events or rooms, and the list does not say so")
    return found


def unmet(releases, databases) -> list[str]:
    """What the list has that no database of this run has: a name that was misspelt, or has gone."""
    known = read()
    for rows in databases:
        with rows.session() as session:
            refer = referring(rows, session)
            for name in set(rows.tables(session)) & known.keys():
                known[name].met |= columns_of(rows, session, name)
                known[name].met |= {".refers"} if name in refer else set()
    is_file = all(rows.is_file for rows in databases)
    found = []
    for table in known.values():
        if not any(table.must_be_in(release, is_file) for release in releases):
            continue
        left = table.columns - table.met
        # A full-text index is a table of its own kind on each engine.
        if left and not table.name.endswith("_search"):
            found.append(f"{table.name}: no release has {', '.join(sorted(left))}")
        if table.refers and ".refers" not in table.met:
            found.append(f"{table.name}: no release refers to events or rooms from there")
    return found


def empty(release: Release, home: Path):
    """The database of a server of this release that has only been started."""
    python = python_of(release)
    with Server(python, home, building=True) as server:
        server.await_background_updates()
    return database.of(home)
