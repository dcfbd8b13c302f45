"""The purge benchmark on PostgreSQL: 90 % of a big room, by Synapse and by roomkeeper with both kinds of role, in one run.

    ROOMKEEPER_BENCH_DIR=… ROOMKEEPER=… python postgres.py [--sizes 50k,100k,200k] [--ways synapse,granted,…] [--repeat N]

Run it with the Python of a virtual environment that has `matrix-synapse` and `psycopg2`. It makes a server of its own in
$ROOMKEEPER_BENCH_DIR/postgres (as `nobody` where it is run by root, who then must be able to get there), and brings
the rooms of `multiply.py` there with `synapse_port_db`, once. Every purge works on a fresh copy of the same database, vacuumed and
analysed, with `delete_local_events: true`; nothing is vacuumed meanwhile.

The ways:

- synapse           Synapse's admin API, from the request to `complete`. Its state groups it deletes ten minutes later, uncounted.
- granted           roomkeeper, Synapse stopped, by a role that may set `session_replication_role`. State groups go at once.
- granted_beside    the same with `--beside`: small strides with rests. State groups are marked.
- ordinary(_beside) the same by the owner of the database, with no more rights than Synapse has.
- --two             `granted_beside` (`--two-offline`: `granted`) for two rooms of that size on two workers of one daemon, and for one of
                    them alone: look at `wall`.

CPU is user + system of the program and of every process of the server. Single times are not stable on a shared machine: compare the
ratios of one run.
"""

import argparse
import glob
import http.client
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import homeserver
import multiply
from purge import cpu, longest, median, purge_by_synapse, settled

SIZES = {"50k": 55_000, "100k": 110_000, "200k": 222_000}
WAYS = ("synapse", "granted", "granted_beside", "ordinary", "ordinary_beside")
TICKS = os.sysconf("SC_CLK_TCK")
ROLE = "synapse"


class Server:
    """The PostgreSQL server of the benchmark."""

    def __init__(self, directory):
        self.dir = directory.resolve()
        self.bin = Path(os.environ.get("ROOMKEEPER_PG_BIN") or sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1])
        self.started = False

    def run(self, *command):
        without_rights = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
        subprocess.run([*without_rights, *map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd=self.dir)

    def __enter__(self):
        if not (self.dir / "data").exists():
            self.dir.mkdir(parents=True, exist_ok=True)
            if os.geteuid() == 0:
                shutil.chown(self.dir, "nobody", "nogroup")
            self.run(self.bin / "initdb", "-D", self.dir / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")
        if not (self.dir / "data/postmaster.pid").exists():
            options = f"-k {self.dir} -c listen_addresses= -c autovacuum=off -c max_wal_size=4GB"
            self.run(self.bin / "pg_ctl", "-D", self.dir / "data", "-l", self.dir / "log", "-o", options, "-w", "start")
            self.started = True
        self.postmaster = int((self.dir / "data/postmaster.pid").read_text().splitlines()[0])
        if not self.ask("postgres", f"SELECT 1 FROM pg_roles WHERE rolname = '{ROLE}'"):
            self.ask("postgres", f"CREATE ROLE {ROLE} LOGIN")
        return self

    def __exit__(self, *_):
        if self.started:
            self.run(self.bin / "pg_ctl", "-D", self.dir / "data", "-m", "fast", "-w", "stop")

    def ask(self, database, *words):
        command = ["psql", "-h", self.dir, "-U", "postgres", "-d", database, "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1"]
        return subprocess.run([*map(str, command), *(part for w in words for part in ("-c", w))], check=True, capture_output=True, text=True).stdout.strip()

    def copy(self, template, name):
        self.drop(name)
        self.ask("postgres", f"CREATE DATABASE {name} OWNER {ROLE} TEMPLATE {template}")
        self.ask(name, "VACUUM ANALYZE")
        self.ask("postgres", "CHECKPOINT")

    def drop(self, name):
        self.ask("postgres", f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def grant(self, may):
        words = "GRANT SET ON PARAMETER session_replication_role TO" if may else "REVOKE SET ON PARAMETER session_replication_role FROM"
        self.ask("postgres", f"{words} {ROLE}")

    def cpu(self):
        """Of every process of the server so far, those that have ended included."""
        total = 0
        for stat in glob.glob("/proc/[0-9]*/stat"):
            try:
                fields = Path(stat).read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            pid, parent = int(stat.split("/")[2]), int(fields[1])
            if pid == self.postmaster:
                total += sum(map(int, fields[11:15]))
            elif parent == self.postmaster:
                total += sum(map(int, fields[11:13]))
        return total / TICKS

    def args(self, database):
        return {"user": ROLE, "dbname": database, "host": str(self.dir), "cp_min": 1, "cp_max": 5}


class OnPostgres(homeserver.Homeserver):
    """A Synapse whose database is on the server."""

    def __init__(self, directory, args):
        super().__init__(directory)
        self.args = args

    def configure(self):
        super().configure()
        file = self.dir / "local.yaml"
        local = json.loads(file.read_text())
        local["database"] = {"name": "psycopg2", "args": self.args}
        file.write_text(json.dumps(local, indent=1))


def ensure(server, events, cache):
    """The database with a room of `events` events, and what is known of it."""
    name = f"b{events}"
    made = multiply.ensure(events, cache)
    about = json.loads((made / "bench.json").read_text())
    if not server.ask("postgres", f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):
        print(f"bringing {events} events to PostgreSQL", file=sys.stderr)
        server.ask("postgres", "DROP DATABASE IF EXISTS porting WITH (FORCE)", f"CREATE DATABASE porting OWNER {ROLE} TEMPLATE template0")
        config = made / "postgres.yaml"
        config.write_text(json.dumps({
            "server_name": about["server_name"], "report_stats": False, "signing_key_path": str(next(made.glob("*.key"))),
            "media_store_path": str(made / "media"), "database": {"name": "psycopg2", "args": server.args("porting")}}))
        subprocess.run([Path(sys.executable).with_name("synapse_port_db"), "--sqlite-database", made / "homeserver.db",
                        "--postgres-config", config, "--batch-size", "10000"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=made)
        server.ask("postgres", f"ALTER DATABASE porting RENAME TO {name}")
        server.ask(name, "VACUUM ANALYZE")
    return name, about, made


# Tables of a second room, and by what their rows are found.
SECOND = {
    "rooms": "room_id", "room_depth": "room_id", "events": "room_id", "event_json": "room_id", "event_edges": "event_id",
    "event_to_state_groups": "event_id", "state_groups": "room_id", "state_group_edges": "state_group", "state_groups_state": "room_id",
    "state_events": "room_id", "event_auth": "event_id", "event_relations": "event_id", "event_search": "room_id", "redactions": "event_id",
    "event_push_actions": "room_id", "event_push_summary": "room_id", "current_state_events": "room_id", "room_memberships": "room_id",
    "local_current_membership": "room_id", "event_forward_extremities": "room_id", "event_backward_extremities": "room_id", "threads": "room_id",
}
EVENT_IDS = {"event_id", "prev_event_id", "auth_id", "relates_to_id", "redacts", "thread_id", "latest_event_id"}


def add_second_room(server, name, room):
    """The same room once more, under another id: every event id is turned round. No homeserver would take it; a purge does."""
    second = "!second" + room[room.index(":"):]
    streams = int(server.ask(name, "SELECT max(stream_ordering) FROM events"))
    groups = int(server.ask(name, "SELECT max(id) FROM state_groups"))
    words = ["SET session_replication_role = replica"]
    for table, by in SECOND.items():
        columns = server.ask(name, f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}' AND table_schema = 'public'").split()
        values = []
        for column in columns:
            if column in EVENT_IDS:
                values.append(f"CASE WHEN t.{column} LIKE '$%' THEN '$' || reverse(substr(t.{column}, 2)) ELSE t.{column} END")
            elif column == "room_id":
                values.append(f"'{second}'")
            elif column in ("stream_ordering", "event_stream_ordering", "last_receipt_stream_ordering"):
                values.append(f"t.{column} + {streams}")
            elif column in ("state_group", "prev_state_group") or (table, column) == ("state_groups", "id"):
                values.append(f"t.{column} + {groups}")
            else:
                values.append(f"t.{column}")
        where = {"room_id": f"t.room_id = '{room}'", "event_id": f"t.event_id IN (SELECT event_id FROM events WHERE room_id = '{room}')",
                 "state_group": f"t.state_group IN (SELECT id FROM state_groups WHERE room_id = '{room}')"}[by]
        words.append(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} FROM {table} t WHERE {where}")
    server.ask(name, *words)
    return second


def configuration(server, name, about, scratch, more=None):
    ledger = scratch / f"{name}.ledger"
    for file in glob.glob(f"{ledger}*"):
        os.remove(file)
    file = scratch / f"{name}.yaml"
    file.write_text(json.dumps({"server_name": about["server_name"], "database": {"name": "psycopg2", "args": server.args(name)},
                                "roomkeeper": {"ledger": str(ledger), **(more or {})}}))
    return file


def way_roomkeeper(server, name, about, scratch, granted, gait):
    server.grant(granted)
    config = configuration(server, name, about, scratch)
    used, before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), server.cpu(), time.monotonic()
    done = subprocess.run([os.environ["ROOMKEEPER"], "-c", config, "--json", gait, "purge-history", about["room_id"],
                           "--before-event", about["cut_event_id"], "--delete-local-events"], capture_output=True, text=True)
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"roomkeeper ended with {done.returncode}: {done.stderr[-2000:]}")
    own = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return {"wall": wall, "own": own, "server": server.cpu() - before, "longest": longest(done.stdout)}


def way_synapse(server, name, about, scratch):
    made = scratch / "synapse"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    for pattern in ("homeserver.yaml", "*.key"):
        for file in about["made"].glob(pattern):
            shutil.copy(file, made)
    with OnPostgres(made, server.args(name)) as hs:
        settled(hs)
        before = cpu(hs.process.pid), server.cpu()
        wall = purge_by_synapse(hs, about, lambda elapsed: min(1, 0.03 + elapsed / 50))
        return {"wall": wall, "own": cpu(hs.process.pid) - before[0], "server": server.cpu() - before[1]}


class OverSocket(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def over_socket(path, method, target, body=None):
    connection = OverSocket(str(path))
    connection.request(method, target, None if body is None else json.dumps(body))
    answer = connection.getresponse()
    said = json.loads(answer.read())
    if answer.status != 200:
        raise SystemExit(f"{target}: {answer.status}: {said}")
    return said


def by_daemon(server, name, about, scratch, rooms, offline):
    """Purges rooms at once; answers how long it took."""
    server.grant(True)
    path = scratch / "socket"
    path.unlink(missing_ok=True)
    config = configuration(server, name, about, scratch, {
        "listen": [f"unix:{path}"], "workers": 2, "homeserver": {"running": "refuse" if offline else "beside"}})
    gait = ["--offline=assume"] if offline else []
    daemon = subprocess.Popen([os.environ["ROOMKEEPER"], "-c", config, *gait, "serve"], stderr=subprocess.DEVNULL)
    try:
        while not path.exists():
            time.sleep(0.05)
            if daemon.poll() is not None:
                raise SystemExit("the daemon ended")
        depth = about["cut_depth"]
        before, begun = server.cpu() + cpu(daemon.pid), time.monotonic()
        jobs = [over_socket(path, "POST", f"/_synapse/admin/v1/purge_history/{homeserver.quote(room)}/{homeserver.quote(event)}", {"delete_local_events": True})["purge_id"]
                for room, event in rooms]
        for job in jobs:
            while (said := over_socket(path, "GET", f"/_synapse/admin/v1/purge_history_status/{job}"))["status"] == "active":
                time.sleep(0.02)
            if said["status"] != "complete":
                raise SystemExit(f"to depth {depth}: {said}")
        return {"wall": time.monotonic() - begun, "own": cpu(daemon.pid), "server": server.cpu() + cpu(daemon.pid) - before}
    finally:
        daemon.terminate()
        daemon.wait()


def measure(server, size, ways, repeat, cache, scratch):
    name, about, made = ensure(server, SIZES[size], cache)
    about["made"] = made
    runs = {way: [] for way in ways}
    left = {}
    for turn in range(repeat):
        for way in ways if turn % 2 == 0 else reversed(ways):
            server.copy(name, "measured")
            granted, gait = way.startswith("granted"), "--beside" if way.endswith("beside") else "--offline=assume"
            load = os.getloadavg()[0]
            if way == "synapse":
                result = way_synapse(server, "measured", about, scratch)
            else:
                result = way_roomkeeper(server, "measured", about, scratch, granted, gait)
            left[way] = server.ask("measured", "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM event_json), (SELECT count(*) FROM event_edges),"
                                   " (SELECT count(*) FROM event_to_state_groups), (SELECT count(*) FROM event_search), (SELECT count(*) FROM event_relations)")
            result["cpu"] = result["own"] + result["server"]
            runs[way].append(result)
            print(f"  {size} {way}: wall {result['wall']:.1f} s, CPU {result['cpu']:.2f} s ({result['own']:.2f} + {result['server']:.2f}), load {load:.1f}", file=sys.stderr, flush=True)
    server.drop("measured")
    for way in ways[1:]:
        if left[way] != left[ways[0]]:
            print(f"  note: {size}: {left[ways[0]]} rows after {ways[0]}, {left[way]} after {way}", file=sys.stderr)
    return {"events": about["events_below_cut"] - about["state_events_below_cut"], "runs": runs}


def two_at_once(server, size, repeat, cache, scratch, offline):
    name, about, _ = ensure(server, SIZES[size], cache)
    server.copy(name, "doubled")
    second = add_second_room(server, "doubled", about["room_id"])
    first = (about["room_id"], about["cut_event_id"])
    other = (second, "$" + about["cut_event_id"][:0:-1])
    walls = {1: [], 2: []}
    for _ in range(repeat):
        for rooms in ([first], [first, other]):
            server.copy("doubled", "measured")
            load = os.getloadavg()[0]
            result = by_daemon(server, "measured", about, scratch, rooms, offline)
            walls[len(rooms)].append(result["wall"])
            print(f"  {size} {len(rooms)} room(s): wall {result['wall']:.2f} s, CPU {result['server'] :.2f} s, load {load:.1f}", file=sys.stderr, flush=True)
    server.drop("measured")
    server.drop("doubled")
    return {rooms: statistics.median(each) for rooms, each in walls.items()}


def report(results):
    lines = []
    for size, result in results.items():
        runs = result["runs"]
        lines += [f"\n### {result['events']:,} events deleted ({size}; medians of {len(next(iter(runs.values())))})\n",
                  "| | wall | CPU | own + server | longest transaction | CPU per event | CPU: Synapse = 1 |", "|---|---|---|---|---|---|---|"]
        for way, rows in runs.items():
            mine, theirs, slow = median(rows, "cpu"), median(runs.get("synapse", []), "cpu"), median(rows, "longest")
            lines.append(f"| {way} | {median(rows, 'wall'):.1f} s | {mine:.2f} s | {median(rows, 'own'):.2f} + {median(rows, 'server'):.2f} s"
                         f" | {'–' if slow is None else f'{slow:.2f} s'} | {mine / result['events'] * 1e6:.0f} µs | {f'{mine / theirs:.3f}' if theirs else '–'} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", default="50k,100k,200k")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way")
    parser.add_argument("--two", action="store_true", help="two rooms at once against one alone, instead")
    parser.add_argument("--two-offline", action="store_true")
    args = parser.parse_args()
    cache = os.environ.get("ROOMKEEPER_BENCH_DIR")
    if not cache or not os.environ.get("ROOMKEEPER"):
        parser.error("set ROOMKEEPER_BENCH_DIR to a directory with some 10 GB of room, and ROOMKEEPER to the release binary")
    cache = Path(cache)
    scratch = cache / "postgres-scratch"
    scratch.mkdir(exist_ok=True)
    if os.getloadavg()[0] > 0.7:
        print(f"note: the machine is busy (load {os.getloadavg()[0]:.1f}); believe ratios only, and not much", file=sys.stderr)
    with Server(cache / "postgres") as server:
        if args.two or args.two_offline:
            for size in args.sizes.split(","):
                walls = two_at_once(server, size, args.repeat, cache, scratch, args.two_offline)
                print(f"{size}: one room {walls[1]:.2f} s, two at once {walls[2]:.2f} s: {walls[2] / walls[1]:.2f} times the time of one (medians of {args.repeat})")
            return
        results = {size: measure(server, size, args.ways.split(","), args.repeat, cache, scratch) for size in args.sizes.split(",")}
        (cache / "results-postgres.json").write_text(json.dumps(results, indent=1) + "\n")
        print(report(results))


if __name__ == "__main__":
    main()
