"""A throw-away PostgreSQL server: started as somebody without rights, reached by a socket in a directory of its own,
and gone when the program that started it has ended, however it ends."""

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

from releases import cache_directory

ADMIN, ROLE = "postgres", "synapse"
# The driver of Synapse and of the oracle, without a compiler.
DRIVER = "psycopg2-binary==2.9.10"
PROGRAMS = ("initdb", "postgres", "pg_dump", "pg_restore")

_running = None


def running() -> "Cluster":
    if _running is None:
        raise RuntimeError("no PostgreSQL server was started: --engine postgres starts one")
    return _running


def driver_directory() -> Path:
    """Where the driver is installed, apart from every Synapse; installs it first where needed."""
    home = cache_directory() / "postgres-driver"
    whole = home / "installed"
    if not (whole.exists() and whole.read_text() == DRIVER):
        shutil.rmtree(home, ignore_errors=True)
        # Not every Python has a pip of its own, and no other package of this one may come between Synapse and its own.
        subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
        pip = [home / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", home / "driver", DRIVER], check=True)
        whole.write_text(DRIVER)
    return home / "driver"


def programs() -> Path:
    """Where they are: `ROOMKEEPER_PG_BIN`, the path, or Debian's place for the newest version."""
    named = [os.environ["ROOMKEEPER_PG_BIN"]] if "ROOMKEEPER_PG_BIN" in os.environ else []
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: int(place.parent.name), reverse=True)
    for place in map(Path, [*named, *os.environ["PATH"].split(os.pathsep), *newest]):
        if all((place / name).is_file() for name in PROGRAMS):
            return place
    raise SystemExit(f"there is no PostgreSQL server to start ({', '.join(PROGRAMS)}): install postgresql")


class Cluster:
    """Use as a context manager; one at a time."""

    def __enter__(self):
        global _running
        sys.path.append(str(driver_directory()))
        self._driver = importlib.import_module("psycopg2")
        self._read_bytes()
        self._programs = programs()
        self._made, self._lock = 0, threading.Lock()
        self.directory = Path(tempfile.mkdtemp(prefix="oracle-pg-"))
        without_rights = []
        if os.geteuid() == 0:
            shutil.chown(self.directory, "nobody", "nogroup")
            without_rights = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]
        here, there = self.directory, self._programs
        script = f"""
            cd {here} && {there}/initdb -D {here}/data -U {ADMIN} -A trust -E UTF8 --locale=C --no-sync >initdb.log 2>&1 || exit 1
            {there}/postgres -D {here}/data -k {here} -c listen_addresses= -c fsync=off -c full_page_writes=off \
                -c synchronous_commit=off -c max_connections=100 -c shared_buffers=96MB -c autovacuum=off \
                -c max_wal_size=256MB >server.log 2>&1 &
            cat >/dev/null
            kill -QUIT $(head -n 1 data/postmaster.pid); while [ -e data/postmaster.pid ]; do sleep 0.05; done; rm -rf {here}"""
        self._watcher = subprocess.Popen([*without_rights, "sh", "-c", script], stdin=subprocess.PIPE, start_new_session=True)
        self._await()
        _running = self
        self._admin(f"CREATE ROLE {ROLE} LOGIN")
        return self

    def __exit__(self, *_):
        global _running
        _running = None
        self._watcher.stdin.close()
        self._watcher.wait(60)

    def _await(self):
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.connect("postgres", user=ADMIN).close()
            except self._driver.OperationalError as error:
                if time.monotonic() > deadline or self._watcher.poll() is not None:
                    raise RuntimeError(f"the PostgreSQL server does not start: {error}")
                time.sleep(0.1)

    def _read_bytes(self):
        """Binary columns as bytes, which can be compared and counted."""
        extensions, binary = importlib.import_module("psycopg2.extensions"), self._driver.BINARY

        def read(value, cursor):
            return None if value is None else bytes(binary(value, cursor))

        extensions.register_type(extensions.new_type(binary.values, "BYTES", read))

    def connect(self, name, user=ROLE, autocommit=False):
        """roomkeeper takes nobody who calls themselves psql for a homeserver."""
        connection = self._driver.connect(host=str(self.directory), user=user, dbname=name, application_name="psql")
        connection.autocommit = autocommit
        return connection

    def _admin(self, sql):
        connection = self.connect("postgres", user=ADMIN, autocommit=True)
        try:
            connection.cursor().execute(sql)
        finally:
            connection.close()

    def create(self, of="template0") -> str:
        """A new database like another one, which nobody may be using."""
        with self._lock:
            self._made += 1
            name = f"d{self._made}"
        deadline = time.monotonic() + 20
        while True:
            try:
                self._admin(f"CREATE DATABASE {name} OWNER {ROLE} TEMPLATE {of}")
                return name
            except self._driver.errors.ObjectInUse:
                # A session that was just closed is still there for a moment.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def drop(self, name):
        self._admin(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def url(self, name) -> str:
        return f"postgres://{ROLE}@{urllib.parse.quote(str(self.directory), safe='')}/{name}"

    def dump(self, name, to: Path):
        self._program("pg_dump", "-Fc", "-Z1", "-f", to, name)

    def restore(self, dump: Path) -> str:
        name = self.create()
        self._program("pg_restore", "--no-owner", "--exit-on-error", "-d", name, dump)
        connection = self.connect(name, autocommit=True)
        connection.cursor().execute("ANALYZE")
        connection.close()
        return name

    def _program(self, program, *words):
        command = [self._programs / program, "-h", self.directory, "-U", ROLE, *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{program}: {done.stderr[-2000:]}")
