"""The paging benchmark: pages a second and CPU a page of /messages, by roomkeeper and by a real Synapse, in one run.

    ROOMKEEPER_BENCH_DIR=… python messages.py [--size 1m] [--servers roomkeeper,synapse] [--statistics without,with] [--pages N] [--rounds N]

Run it with the Python of a virtual environment that has `matrix-synapse`; `cargo bench --bench messages` does, when
$ROOMKEEPER_BENCH_PYTHON names that Python. Both servers work on the same file, a copy of the server that multiply.py
makes: first as Synapse leaves it, without statistics, then after `ANALYZE`.

What is measured, for both alike: pages of 100 events over HTTP with keep-alive, walked with the tokens that the server
answers, of the admin and the client variant, at the newest end of the room, in its middle and at its oldest end.

- warm     the same walk again after one that is not counted; in turns, `--rounds` times; medians of the rounds
- cold     a new process, the file dropped from the page cache before its first page; one walk, from the middle
- eight    eight clients that walk different parts of the room at a time
- purging  eight clients walk another room while the big one is purged in strides (roomkeeper only)
- floor    what no server can do without: the rows of the same pages, read by SQLite's C library with the least statement
           there is (events and their JSON, nothing looked up about them), and an exchange over HTTP for a page of no events
- CPU      user + system of the server's process, a page; the ratio that counts on a machine that others use as well
- pages/s  pages by the time from request to answer; the client's own time between them is not counted

Single times are not stable on a shared machine: compare the ratios of one run.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import homeserver
import multiply
from purge import SIZES, cpu, fresh, settled

VARIANTS = {"admin": "/_synapse/admin/v1", "client": "/_matrix/client/v3"}
LIMIT = 100
CLIENTS = 8
PURGED_ASIDE = 12  # seconds of a purge in another room


# ---- The servers -----------------------------------------------------------------------------------------------------

class Roomkeeper:
    """The daemon on a server's directory."""

    name = "roomkeeper"

    def __init__(self, directory, binary):
        self.dir, self.binary, self.process = directory, binary, None

    def __enter__(self):
        self.port = homeserver.free_port()
        config = {"server_name": homeserver.Homeserver(self.dir).server_name(),
                  "database": {"name": "sqlite3", "args": {"database": str(self.dir / "homeserver.db")}},
                  "roomkeeper": {"listen": [f"127.0.0.1:{self.port}"], "homeserver": {"running": "beside"}}}
        (self.dir / "roomkeeper.yaml").write_text(json.dumps(config))
        self.log = open(self.dir / "roomkeeper.log", "ab")
        self.process = subprocess.Popen([self.binary, "-c", str(self.dir / "roomkeeper.yaml"), "serve"], stdout=self.log, stderr=self.log)
        while True:
            with contextlib.suppress(OSError), contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as client:
                client.request("GET", "/_roomkeeper/v1/health")
                client.getresponse().read()
                return self
            if self.process.poll() is not None:
                raise SystemExit(f"roomkeeper ended with {self.process.returncode}; see {self.log.name}")
            time.sleep(0.05)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.close()


class Synapse(homeserver.Homeserver):
    """A real Synapse on a server's directory."""

    name = "synapse"

    def __init__(self, directory, _):
        super().__init__(directory)

    def __enter__(self):
        self.start()
        settled(self)
        return self


SERVERS = {"roomkeeper": Roomkeeper, "synapse": Synapse}


# ---- Walking ---------------------------------------------------------------------------------------------------------

class Walker:
    """One client on one connection."""

    def __init__(self, server, about):
        self.client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
        self.headers = {"Authorization": f"Bearer {about['admin_token']}"}

    def walk(self, variant, room, place, pages, limit=LIMIT):
        """The times of so many pages, in seconds. Begins anew where there are no more."""
        times, token = [], place["from"]
        for _ in range(pages):
            query = {"dir": place["dir"], "limit": limit, **({"from": token} if token else {})}
            path = f"{VARIANTS[variant]}/rooms/{homeserver.quote(room)}/messages?{urllib.parse.urlencode(query)}"
            begun = time.perf_counter()
            self.client.request("GET", path, headers=self.headers)
            answer = self.client.getresponse()
            body = answer.read()
            times.append(time.perf_counter() - begun)
            if answer.status != 200:
                raise SystemExit(f"{path}: HTTP {answer.status}: {body[:300]}")
            page = json.loads(body)
            token = page.get("end") or place["from"]
        return times


def places(database, room):
    """Where walks begin: tokens that both servers read."""
    db = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    depth, = db.execute("SELECT max(topological_ordering) / 2 FROM events WHERE room_id = ?", (room,)).fetchone()
    topological, stream = db.execute("SELECT topological_ordering, stream_ordering FROM events WHERE room_id = ? AND topological_ordering >= ? AND NOT outlier"
                                     " ORDER BY topological_ordering, stream_ordering LIMIT 1", (room, depth)).fetchone()
    db.close()
    return {"newest": {"dir": "b", "from": None}, "middle": {"dir": "b", "from": f"t{topological}-{stream}_0_0_0_0_0_0_0_0_0"}, "oldest": {"dir": "f", "from": None}}


def figures(times, spent, clients=1):
    times = sorted(times)
    return {"pages": len(times), "rate": clients * len(times) / sum(times), "cpu": spent / len(times),
            "p50": times[len(times) // 2], "p99": times[min(len(times) - 1, len(times) * 99 // 100)]}


def one(server, about, variant, place, pages, limit=LIMIT):
    walker, before = Walker(server, about), cpu(server.process.pid)
    times = walker.walk(variant, about["room_id"], place, pages, limit)
    return figures(times, cpu(server.process.pid) - before)


def crowd(server, about, variant, room, starts, pages, until=None):
    """A client for each of the starts, at the same time. With `until`, they go on as long as it says."""
    times, faults = [], []

    def work(place):
        try:
            walker = Walker(server, about)
            while True:
                times.extend(walker.walk(variant, room, place, pages))
                if until is None or not until():
                    return
        except BaseException as fault:  # of another thread: told to this one
            faults.append(fault)

    before = cpu(server.process.pid)
    threads = [threading.Thread(target=work, args=(place,)) for place in starts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return figures(times, cpu(server.process.pid) - before, len(starts))


def scattered(database, room):
    """As many places in a room as there are clients."""
    db = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    depth, = db.execute("SELECT max(topological_ordering) FROM events WHERE room_id = ?", (room,)).fetchone()
    newest, = db.execute("SELECT max(stream_ordering) FROM events").fetchone()
    db.close()
    return [{"dir": "b", "from": f"t{depth * (n + 1) // CLIENTS}-{newest}_0_0_0_0_0_0_0_0_0"} for n in range(CLIENTS)]


def drop_from_page_cache(directory):
    """Asks the machine to forget the database: what is on the disk already it can."""
    for file in directory.glob("homeserver.db*"):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ---- The floor -------------------------------------------------------------------------------------------------------

ROWS = """
    SELECT e.event_id, j.json, j.internal_metadata
      FROM (SELECT event_id, topological_ordering, stream_ordering FROM events
             WHERE room_id = ? AND outlier IS NOT TRUE AND (topological_ordering, stream_ordering) <= (?, ?)
             ORDER BY topological_ordering DESC, stream_ordering DESC LIMIT ?) e
      JOIN event_json j ON j.event_id = e.event_id"""


def rows_alone(database, room, pages):
    """The CPU of reading the rows of so many pages from the middle of a room, a page."""
    db = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    db.execute("PRAGMA cache_size = -262144")
    middle, = db.execute("SELECT max(topological_ordering) / 2 FROM events WHERE room_id = ?", (room,)).fetchone()
    spent = []
    for _ in range(4):
        before = time.process_time()
        for page in range(pages):
            db.execute(ROWS, (room, middle - page * LIMIT, 2**62, LIMIT + 1)).fetchall()
        spent.append((time.process_time() - before) / pages)
    db.close()
    return statistics.median(spent[1:])


def floor(server, database, about, pages):
    """As one line of the report."""
    empty = one(server, about, "admin", {"dir": "b", "from": None}, 10 * pages, limit=0)
    rows = rows_alone(database, about["room_id"], pages)
    return (f"\nThe floor of a page: {rows * 1000:.2f} ms CPU for its rows alone, by plain SQL, and {empty['cpu'] * 1000:.2f} ms for an"
            f" exchange without events ({empty['p50'] * 1000:.2f} ms from request to answer).")


# ---- The run and the report ------------------------------------------------------------------------------------------

def purge_aside(server, about, directory, results):
    """Eight clients walk another room: alone, then while the big one is purged."""
    db = sqlite3.connect(f"file:{directory / 'homeserver.db'}?mode=ro", uri=True)
    other, = db.execute("SELECT room_id FROM events WHERE room_id <> ? AND NOT outlier GROUP BY room_id ORDER BY count(*) DESC LIMIT 1", (about["room_id"],)).fetchone()
    db.close()
    starts = scattered(directory / "homeserver.db", other)
    crowd(server, about, "admin", other, starts, 10)
    results["admin, another room, eight"] = [crowd(server, about, "admin", other, starts, 40)]
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    room, cut = homeserver.quote(about["room_id"]), homeserver.quote(about["cut_event_id"])
    headers = {"Authorization": f"Bearer {about['admin_token']}"}

    def ask(method, path, body=None):
        client.request(method, path, body and json.dumps(body), headers)
        answer = client.getresponse()
        return answer.status, json.loads(answer.read())

    status, answer = ask("POST", f"/_synapse/admin/v1/purge_history/{room}/{cut}", {"delete_local_events": True})
    if status != 200:
        raise SystemExit(f"the purge was refused: {answer}")
    end = time.monotonic() + PURGED_ASIDE
    results["admin, another room, eight, purging"] = [crowd(server, about, "admin", other, starts, 10, lambda: time.monotonic() < end)]
    _, status = ask("GET", f"/_synapse/admin/v1/purge_history_status/{answer['purge_id']}")
    if status["status"] == "failed":
        raise SystemExit(f"the purge failed: {status}")
    if status["status"] == "complete":
        print("note: the purge ended before the readers did", file=sys.stderr)
    ask("POST", f"/_roomkeeper/v1/jobs/{answer['purge_id']}/cancel")


def measure(directory, about, servers, binary, pages, rounds, slow):
    """Everything on one file. `slow` servers are asked for few pages."""
    database = directory / "homeserver.db"
    begin, starts = places(database, about["room_id"]), scattered(database, about["room_id"])
    results = {name: {} for name in servers}
    few = {name: 3 if name in slow else pages for name in servers}
    for name in servers:
        for variant in VARIANTS:
            with SERVERS[name](directory, binary) as server:
                drop_from_page_cache(directory)
                results[name][f"{variant}, middle, cold"] = [one(server, about, variant, begin["middle"], few[name])]
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(SERVERS[name](directory, binary)) for name in servers}
        for variant in VARIANTS:
            for at, place in begin.items():
                for name, server in running.items():
                    one(server, about, variant, place, few[name])
                for turn in range(rounds):
                    for name in servers if turn % 2 == 0 else reversed(servers):
                        measured = one(running[name], about, variant, place, few[name])
                        results[name].setdefault(f"{variant}, {at}, warm", []).append(measured)
            for name, server in running.items():
                each = 1 if name in slow else max(pages // 4, 2)
                crowd(server, about, variant, about["room_id"], starts, each)
                results[name][f"{variant}, eight"] = [crowd(server, about, variant, about["room_id"], starts, each) for _ in range(rounds)]
            print(f"  {variant} done", file=sys.stderr, flush=True)
    return results


def median(runs, key):
    return statistics.median(run[key] for run in runs)


def report(results, title):
    """A table of medians and ratios, as Markdown."""
    lines = [f"\n### {title}\n"]
    names = list(results)
    head = [f"{name}: pages/s | CPU a page | p50 | p99" for name in names]
    both = len(names) == 2
    lines += ["| | " + " | ".join(head) + (" | pages/s | pages by CPU |" if both else " |"), "|---" * (1 + 4 * len(names) + 2 * both) + "|"]
    for walk in results[names[0]]:
        row, of = [walk], {}
        for name in names:
            runs = results[name].get(walk)
            if not runs:
                row += ["–"] * 4
                continue
            of[name] = {key: median(runs, key) for key in ("rate", "cpu", "p50", "p99")}
            row += [f"{of[name]['rate']:.0f}", f"{of[name]['cpu'] * 1000:.2f} ms", f"{of[name]['p50'] * 1000:.1f} ms", f"{of[name]['p99'] * 1000:.1f} ms"]
        if both:
            ours, theirs = (of.get(name) for name in ("roomkeeper", "synapse"))
            row += [f"{ours['rate'] / theirs['rate']:.1f} ×", f"{theirs['cpu'] / ours['cpu']:.1f} ×"] if ours and theirs else ["–", "–"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", default="1m", choices=SIZES)
    parser.add_argument("--servers", default="roomkeeper,synapse")
    parser.add_argument("--statistics", default="without,with", help="as Synapse leaves the file, and after ANALYZE")
    parser.add_argument("--pages", type=int, default=100, help="pages of a walk")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cache, binary = os.environ.get("ROOMKEEPER_BENCH_DIR"), os.environ.get("ROOMKEEPER")
    if not cache:
        parser.error("set ROOMKEEPER_BENCH_DIR to a directory with some 10 GB of room, outside the repository")
    servers = args.servers.split(",")
    if "roomkeeper" in servers and not binary:
        parser.error("set ROOMKEEPER to the release binary (cargo bench does)")
    size_dir = Path(cache) / args.size
    multiply.ensure(SIZES[args.size], Path(cache))
    about = json.loads((size_dir / "bench.json").read_text())
    print(f"load at the beginning: {os.getloadavg()[0]:.1f}", file=sys.stderr)
    directory = fresh(size_dir, "messages")
    try:
        results = {}
        for statistics_ in args.statistics.split(","):
            if statistics_ == "with":
                db = sqlite3.connect(directory / "homeserver.db")
                db.execute("ANALYZE")
                db.close()
            # Without statistics Synapse needs seconds a page of a large room.
            slow = {"synapse"} if statistics_ == "without" else set()
            results[statistics_] = measure(directory, about, servers, binary, args.pages, args.rounds, slow)
            print(report(results[statistics_], f"{args.size}, {statistics_} statistics, load {os.getloadavg()[0]:.1f}"), flush=True)
        if "roomkeeper" in servers:
            aside = {}
            with Roomkeeper(directory, binary) as server:
                print(floor(server, directory / "homeserver.db", about, args.pages), flush=True)
                purge_aside(server, about, directory, aside)
            print(report({"roomkeeper": aside}, f"{args.size}, a purge in strides beside, load {os.getloadavg()[0]:.1f}"))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
