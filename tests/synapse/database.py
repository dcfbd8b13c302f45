"""Where a server's rows are: in a file of SQLite's, or in a database of the throw-away PostgreSQL server.

`of(home)` tells; whoever reads, writes or copies a server's rows goes through here, and asks both in one dialect.
"""

import hashlib
import json
import re
import shutil
import sqlite3
from pathlib import Path

import cluster

FILE = "homeserver.db"
# In the directory of a server on PostgreSQL: the name of its database.
MARK = "postgres.json"

# How SQLite stores a full-text table; its *content* is compared, and its integrity is checked apart.
SHADOWS = ("_content", "_segments", "_segdir", "_docsize", "_stat")

# `:name`, unless it is the end of a user's or a room's id.
NAMED = re.compile(r"(?<=[\s,(=]):(\w+)")


def of(home: Path):
    """The database of the server in this directory."""
    mark = home / MARK
    return Served(home, json.loads(mark.read_text())["name"]) if mark.exists() else InFile(home)


def put_on_server(home: Path, name: str):
    """From now on the server in this directory, which need not exist yet, has that database."""
    home.mkdir(parents=True, exist_ok=True)
    (home / MARK).write_text(json.dumps({"name": name}))


def copy(home: Path, to: Path, *left_out) -> Path:
    """The same server in another directory, with rows of its own; what was there before is gone."""
    remove(to)
    ignored = shutil.ignore_patterns("*.log", "manifest.json", f"{FILE}-*", *left_out)
    shutil.copytree(home, to, ignore=ignored)
    of(home).copy(to)
    return to


def remove(home: Path):
    if home.exists():
        of(home).drop()
        shutil.rmtree(home)


class Session:
    """A connection; in what it is asked `?` and `:name` stand for values. As a context manager it commits and closes."""

    def __init__(self, connection, is_server=False):
        self._connection, self._is_server = connection, is_server

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self._connection.commit()
        self.close()

    def execute(self, sql, values=()):
        cursor = self._connection.cursor()
        cursor.execute(self._words(sql, values), values or (None if self._is_server else ()))
        return cursor

    def executemany(self, sql, many):
        self._connection.cursor().executemany(self._words(sql, (1,)), many)

    def _words(self, sql, values) -> str:
        if not self._is_server or not values:
            return sql
        sql = sql.replace("%", "%%")
        return NAMED.sub(r"%(\1)s", sql) if isinstance(values, dict) else sql.replace("?", "%s")

    def commit(self):
        self._connection.commit()

    def close(self):
        self._connection.close()


class InFile:
    """SQLite's."""

    is_file = True

    def __init__(self, home: Path):
        self.path = home / FILE

    def session(self, write=False) -> Session:
        if write:
            return Session(sqlite3.connect(self.path, timeout=30))
        return Session(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=30))

    def damaging_session(self) -> Session:
        return self.session(write=True)

    def settings(self) -> dict:
        """What `homeserver.yaml` says of it; relative, so that a server can be copied anywhere."""
        return {"name": "sqlite3", "args": {"database": FILE}}

    def address(self) -> str:
        """What `roomkeeper --database` takes."""
        return str(self.path)

    def copy(self, to: Path):
        pass  # the file is in the directory

    def drop(self):
        pass

    def settle(self):
        """Everything into the one file, so that a copy of it is the whole database."""
        if self.path.exists():
            connection = sqlite3.connect(self.path)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()

    def tables(self, session) -> list[str]:
        names = {name for (name,) in session.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        made = "SELECT name FROM sqlite_master WHERE type = 'table' AND sql LIKE 'CREATE VIRTUAL%'"
        shadows = {name + shadow for (name,) in session.execute(made) for shadow in SHADOWS}
        return sorted(names - shadows)

    def unique(self, session, table) -> list[tuple]:
        """Sets of columns that are unique, the primary key first, partial indexes left aside."""
        info = session.execute(f'PRAGMA table_info("{table}")').fetchall()
        primary = tuple(row[1] for row in sorted(info, key=lambda row: row[5]) if row[5])
        found = [primary] if primary else []
        for _, index, unique, _, partial in session.execute(f'PRAGMA index_list("{table}")').fetchall():
            if unique and not partial:
                found.append(tuple(row[2] for row in session.execute(f'PRAGMA index_info("{index}")')))
        return found

    def schema(self) -> set:
        with self.session() as session:
            found = set(session.execute("SELECT type, name, tbl_name, sql FROM sqlite_master"))
            # Not `journal_mode`: Synapse sets WAL itself, releases before 1.67 apart, and then so does roomkeeper (V-0c).
            names = ("user_version", "application_id")
            return found | {("pragma", name, *session.execute(f"PRAGMA {name}").fetchone()) for name in names}

    def fingerprint(self):
        """Changes when anything is written."""
        return hashlib.sha256(self.path.read_bytes()).digest()

    def flaws(self):
        """I-18; and the full-text index, of which `integrity_check` knows nothing on older SQLites."""
        # A connection that may write: the full-text check is an INSERT.  It works on a private copy in memory.
        source, database = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=30), sqlite3.connect(":memory:")
        source.backup(database)
        source.close()
        for (line,) in database.execute("PRAGMA integrity_check"):
            if line != "ok":
                yield line
        for violation in database.execute("PRAGMA foreign_key_check"):
            yield f"foreign key {violation}"
        try:
            database.execute("INSERT INTO event_search(event_search) VALUES ('integrity-check')")
        except sqlite3.DatabaseError as error:
            yield f"full-text index: {error}"
        database.close()


# Everything that makes the layout, without the rows.
LAYOUT = (
    "SELECT 'column', table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
    " WHERE table_schema = 'public'",
    "SELECT 'index', tablename, indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'public'",
    "SELECT 'constraint', CAST(CAST(conrelid AS regclass) AS TEXT), conname, pg_get_constraintdef(oid),"
    " CAST(convalidated AS TEXT), '' FROM pg_constraint WHERE connamespace = CAST('public' AS regnamespace)",
    "SELECT 'trigger', CAST(CAST(tgrelid AS regclass) AS TEXT), tgname, pg_get_triggerdef(oid), CAST(tgenabled AS TEXT), ''"
    " FROM pg_trigger WHERE NOT tgisinternal",
    "SELECT 'sequence', sequencename, '', '', '', '' FROM pg_sequences WHERE schemaname = 'public'",
)

UNIQUE = """
    SELECT i.indexrelid, a.attname
      FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(number, place), pg_attribute a
     WHERE i.indrelid = CAST(? AS regclass) AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL
       AND a.attrelid = i.indrelid AND a.attnum = k.number
     ORDER BY NOT i.indisprimary, 1, k.place"""

# Tables and columns of both sides of each foreign key, column by column.
KEYS = """
    SELECT c.conname, CAST(c.conrelid AS regclass), CAST(c.confrelid AS regclass), a.attname, f.attname
      FROM pg_constraint c, unnest(c.conkey, c.confkey) AS k(ours, theirs), pg_attribute a, pg_attribute f
     WHERE c.contype = 'f' AND a.attrelid = c.conrelid AND a.attnum = k.ours
       AND f.attrelid = c.confrelid AND f.attnum = k.theirs"""


class Served:
    """On the PostgreSQL server of this run."""

    is_file = False

    def __init__(self, home: Path, name: str):
        self.home, self.name = home, name

    def session(self, write=False) -> Session:
        # Whoever only reads may read everything.
        user = cluster.ROLE if write else cluster.ADMIN
        return Session(cluster.running().connect(self.name, user, autocommit=not write), is_server=True)

    def damaging_session(self) -> Session:
        """One that nothing stops: neither rights nor foreign keys."""
        session = Session(cluster.running().connect(self.name, user=cluster.ADMIN), is_server=True)
        session.execute("SET session_replication_role = replica")
        return session

    def settings(self) -> dict:
        running = cluster.running()
        args = {"user": cluster.ROLE, "dbname": self.name, "host": str(running.directory), "cp_min": 1, "cp_max": 5}
        return {"name": "psycopg2", "args": args}

    def address(self) -> str:
        return cluster.running().url(self.name)

    def copy(self, to: Path):
        put_on_server(to, cluster.running().create(of=self.name))
        configuration = to / "homeserver.yaml"
        if configuration.exists():
            settings = {**json.loads(configuration.read_text()), "database": of(to).settings()}
            configuration.write_text(json.dumps(settings, indent=2))

    def drop(self):
        cluster.running().drop(self.name)

    def settle(self):
        pass

    def tables(self, session) -> list[str]:
        return sorted(name for (name,) in session.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall())

    def unique(self, session, table) -> list[tuple]:
        found = {}
        for index, column in session.execute(UNIQUE, (f'"{table}"',)).fetchall():
            found.setdefault(index, []).append(column)
        return [tuple(columns) for columns in found.values()]

    def schema(self) -> set:
        with self.session() as session:
            return {row for sql in LAYOUT for row in session.execute(sql).fetchall()}

    def fingerprint(self):
        """Changes when a row is written, be it with what stood there before."""
        with self.session() as session:
            words = "SELECT count(*), sum(hashtext(CAST(ctid AS TEXT) || CAST(xmin AS TEXT))) FROM"
            return [session.execute(f'{words} "{table}"').fetchone() for table in self.tables(session)]

    def flaws(self):
        """I-18: the rows keep every foreign key, whoever looked after it; those too that Synapse has not validated yet."""
        keys = {}
        with self.session() as session:
            for name, table, other, ours, theirs in session.execute(KEYS).fetchall():
                keys.setdefault((name, table, other), []).append((ours, theirs))
            for (name, table, other), columns in keys.items():
                there = " AND ".join(f'a."{ours}" IS NOT NULL' for ours, _ in columns)
                meets = " AND ".join(f'b."{theirs}" = a."{ours}"' for ours, theirs in columns)
                sql = f"SELECT count(*) FROM {table} a WHERE {there} AND NOT EXISTS (SELECT 1 FROM {other} b WHERE {meets})"
                (broken,) = session.execute(sql).fetchone()
                if broken:
                    yield f"foreign key {name}: {broken} rows of {table} refer to nothing"
