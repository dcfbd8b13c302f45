"""The purge benchmark: 90 % of a big room, by plain SQL, by Synapse, and by roomkeeper in both gaits, in one run.

    ROOMKEEPER_BENCH_DIR=… python purge.py [--sizes 10k,100k,1m] [--ways floor,floor_in_strides,synapse,offline,beside] [--repeat N]

Run it with the Python of a virtual environment that has `matrix-synapse`; `cargo bench --bench purge` does, when
$ROOMKEEPER_BENCH_PYTHON names that Python. Every purge works on a fresh copy of the same server (multiply.py), with
`delete_local_events: true`.

What is measured, for all ways alike:

- wall     from the first moment of the process (Synapse: from the request) to its end (Synapse: to the status `complete`)
- CPU      user + system of every process that takes part, the writer beside roomkeeper included
- written  `wchar` of /proc/<pid>/io: all bytes given to write(2), so database + write-ahead log + temporary files
- RSS      VmHWM (Synapse: reset before the request)
- WAL      the biggest size of `-wal`, looked at every 5 ms
- longest  the longest transaction: the floor has one; roomkeeper reports it (`longest_transaction_ms`)
- waited   beside: another process changes one row every 10 ms with a busy timeout of 5 s, and like Synapse's connections it
           checkpoints when the log is over 1,000 pages: its longest wait, how often it was told "database is locked", and how
           many writes a second it managed. In the ways `…_in_use`: the slowest of the messages that a user of a running
           Synapse sends five times a second, and how many failed

Single times are not stable on a shared machine: compare the ratios of one run.
"""

import argparse
import contextlib
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import floor
import homeserver
import multiply

SIZES = {"10k": 11_000, "100k": 110_000, "1m": 1_100_000}
WAYS = ("floor", "floor_in_strides", "synapse", "offline", "beside")  # and synapse_in_use, beside_in_use: how long a user waits
REPEAT = {"10k": 3, "100k": 3, "1m": 1}
TICKS = os.sysconf("SC_CLK_TCK")
HERE = Path(__file__).parent


# ---- Measuring -------------------------------------------------------------------------------------------------------

def written(pid):
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split()[1])


def cpu(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def high_water(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class WalWatch(threading.Thread):
    """The biggest size of the write-ahead log while this lives."""

    def __init__(self, database):
        super().__init__(daemon=True)
        self.path, self.peak, self.done = str(database) + "-wal", 0, threading.Event()

    def run(self):
        while not self.done.wait(0.005):
            try:
                self.peak = max(self.peak, os.stat(self.path).st_size)
            except FileNotFoundError:
                pass

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


def run_process(command, database):
    """Runs a command to its end and measures it; what it printed is in `out`."""
    with WalWatch(database) as wal:
        begun = time.monotonic()
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        texts = {}
        readers = [threading.Thread(target=lambda name=name: texts.update({name: getattr(process, name).read()})) for name in ("stdout", "stderr")]
        for reader in readers:
            reader.start()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, but its counters can still be read
        wall = time.monotonic() - begun
        wrote = written(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for reader in readers:
            reader.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{texts['stderr'][-2000:]}")
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "written": wrote, "rss": usage.ru_maxrss * 1024, "wal": wal.peak, "out": texts["stdout"]}


def find_key(value, key):
    """The first value of `key` anywhere in decoded JSON."""
    if isinstance(value, dict):
        if key in value:
            return value[key]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            if (found := find_key(item, key)) is not None:
                return found
    return None


def longest(text):
    """`longest_transaction_ms` of the last JSON on standard output that has it, in seconds."""
    for part in [text, *reversed(text.splitlines())]:
        try:
            found = find_key(json.loads(part), "longest_transaction_ms")
        except ValueError:
            continue
        if found is not None:
            return found / 1000
    return None


# ---- The ways --------------------------------------------------------------------------------------------------------

def way_floor(server, about, _, way="leap"):
    result = run_process([sys.executable, HERE / "floor.py", way, server / "homeserver.db", about["room_id"], about["cut_depth"]], server / "homeserver.db")
    return {**result, "longest": longest(result["out"])}


def way_floor_in_strides(server, about, binary):
    return way_floor(server, about, binary, "strides")


def roomkeeper(server, about, binary, gait):
    return run_process([binary, "--database", server / "homeserver.db", "--server-name", about["server_name"], "--json", gait,
                        "purge-history", about["room_id"], "--before-event", about["cut_event_id"], "--delete-local-events"], server / "homeserver.db")


def way_offline(server, about, binary):
    result = roomkeeper(server, about, binary, "--offline=assume")
    return {**result, "longest": longest(result["out"])}


def way_beside(server, about, binary):
    other = subprocess.Popen([sys.executable, str(HERE / "writer.py"), str(server / "homeserver.db"), about["other_room_id"]],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "ready\n"
        time.sleep(0.5)
        before = cpu(other.pid), written(other.pid)
        result = roomkeeper(server, about, binary, "--beside")
        result["cpu"] += cpu(other.pid) - before[0]
        result["written"] += written(other.pid) - before[1]
        other.stdin.close()
        saw = json.loads(other.stdout.readline())
    finally:
        if other.poll() is None:
            other.stdin.close()
        other.wait()
    return {**result, "longest": longest(result["out"]), "waited": saw["max"], "waited_p99": saw["p99"], "locked": saw["locked"], "writes": saw["writes"]}


class User(threading.Thread):
    """Somebody who sends a message into another room five times a second, and notes how long each took."""

    def __init__(self, hs, about):
        super().__init__(daemon=True)
        self.hs, self.room, self.token = hs, homeserver.quote(about["other_room_id"]), about["other_room_token"]
        self.waits, self.failed, self.done = [], 0, threading.Event()

    def run(self):
        while not self.done.wait(0.2):
            begun = time.monotonic()
            try:
                self.hs.call("PUT", f"/_matrix/client/v3/rooms/{self.room}/send/m.room.message/u{len(self.waits)}",
                             {"msgtype": "m.text", "body": "is it slow today?"}, self.token, timeout=120)
            except (OSError, homeserver.ApiError):
                self.failed += 1
            self.waits.append(time.monotonic() - begun)

    def __enter__(self):
        self.start()
        time.sleep(1)
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()

    def figures(self):
        return {"waited": max(self.waits), "locked": self.failed, "writes": len(self.waits)}


def settled(hs):
    """Waits until a Synapse has done what it does at start."""
    while True:
        before = cpu(hs.process.pid)
        time.sleep(1)
        if cpu(hs.process.pid) - before < 0.05:
            return


def purge_by_synapse(hs, about, poll_every):
    """The admin API's purge, from the request to `complete`."""
    token = about["admin_token"]
    begun = time.monotonic()
    purge = hs.call("POST", f"/_synapse/admin/v1/purge_history/{homeserver.quote(about['room_id'])}/{homeserver.quote(about['cut_event_id'])}",
                    {"delete_local_events": True}, token)["purge_id"]
    while True:
        time.sleep(poll_every(time.monotonic() - begun))
        status = hs.call("GET", f"/_synapse/admin/v1/purge_history_status/{purge}", token=token)
        if status["status"] != "active":
            break
    if status["status"] != "complete":
        raise SystemExit(f"Synapse's purge failed: {status}")
    return time.monotonic() - begun


def way_synapse(server, about, _, user=False):
    with homeserver.Homeserver(server) as hs:
        settled(hs)
        pid = hs.process.pid
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        somebody = User(hs, about) if user else contextlib.nullcontext()
        with WalWatch(server / "homeserver.db") as wal, somebody:
            before = cpu(pid), written(pid)
            # Asking costs Synapse time: seldom in a long purge.
            wall = purge_by_synapse(hs, about, lambda elapsed: min(1, 0.03 + elapsed / 50))
            result = {"wall": wall, "cpu": cpu(pid) - before[0], "written": written(pid) - before[1], "rss": high_water(pid)}
        return {**result, "wal": wal.peak, "longest": None, **(somebody.figures() if user else {})}


def way_synapse_in_use(server, about, binary):
    """Synapse purges while somebody uses it: look at `waited` only."""
    return way_synapse(server, about, binary, user=True)


def way_beside_in_use(server, about, binary):
    """roomkeeper purges beside a real Synapse that somebody uses: look at `waited` only (CPU and bytes are roomkeeper's alone)."""
    with homeserver.Homeserver(server) as hs:
        settled(hs)
        with User(hs, about) as somebody:
            result = roomkeeper(server, about, binary, "--beside")
        return {**result, "longest": longest(result["out"]), **somebody.figures()}


def outcome(database, about):
    """What is left: no timeline below the cut, and how many rows in all. Raises where a purge did not purge."""
    db = sqlite3.connect(database)
    left = multiply.one(db, "SELECT count(*) FROM events WHERE room_id = ? AND topological_ordering < ? AND NOT outlier", about["room_id"], about["cut_depth"])
    if left:
        raise SystemExit(f"{left} events are still below the cut")
    rows = {table: multiply.one(db, f"SELECT count(*) FROM {'event_search_content' if table == 'event_search' else table}") for table, _ in floor.TABLES}
    db.close()
    return rows


# ---- The run and the report ------------------------------------------------------------------------------------------

def fresh(size_dir, way):
    work = size_dir.with_name(f"{size_dir.name}.{way}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for file in size_dir.iterdir():
        if file.is_file():
            subprocess.run(["cp", "--reflink=auto", file, work / file.name], check=True)
    with open(work / "homeserver.db", "rb+") as file:  # on the disk before the clock runs
        os.fsync(file.fileno())
    return work


def measure(size, ways, repeat, binary, cache):
    size_dir = cache / size
    about = json.loads((size_dir / "bench.json").read_text())
    runs = {way: [] for way in ways}
    rows = {}
    for turn in range(repeat):
        for way in ways if turn % 2 == 0 else reversed(ways):
            work = fresh(size_dir, way)
            try:
                result = globals()["way_" + way](work, about, binary)
                result.pop("out", None)
                rows[way] = outcome(work / "homeserver.db", about)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            runs[way].append(result)
            print(f"  {size} {way}: wall {result['wall']:.2f} s, CPU {result['cpu']:.2f} s, written {result['written'] / 1e9:.2f} GB", file=sys.stderr, flush=True)
    quiet = [way for way in ways if not way.endswith("_in_use")]  # where nobody added rows of his own
    for way in quiet[1:]:
        first = rows[quiet[0]]
        for table in first:
            if rows[way][table] != first[table]:
                print(f"  note: {size}: {table} has {first[table]} rows after {quiet[0]}, {rows[way][table]} after {way}", file=sys.stderr)
    return {"about": about, "runs": runs}


def median(runs, key):
    values = [run[key] for run in runs if run.get(key) is not None]
    return statistics.median(values) if values else None


def report(results):
    """Tables of medians, ratios and growth, as Markdown."""
    lines = []
    for size, result in results.items():
        runs, about = result["runs"], result["about"]
        gone = about["events_below_cut"] - about["state_events_below_cut"]
        lines += [f"\n### {gone:,} events deleted ({size}; medians of {len(next(iter(runs.values())))})\n",
                  "| | wall | CPU | written | RSS | WAL | longest transaction | another writer waited | CPU: Synapse = 1 | CPU: floor = 1 | written: Synapse = 1 | written: floor = 1 |",
                  "|---|---|---|---|---|---|---|---|---|---|---|---|"]
        for way, rows in runs.items():
            def ratio(key, base):
                mine, theirs = median(rows, key), median(runs.get(base, []), key)
                return f"{mine / theirs:.3f}" if theirs else "–"
            longest_s, waited = median(rows, "longest"), median(rows, "waited")
            locked = sum(run.get("locked", 0) for run in rows)
            rate = None if waited is None else sum(run["writes"] for run in rows) / sum(run["wall"] for run in rows)
            lines.append(f"| {way} | {median(rows, 'wall'):.2f} s | {median(rows, 'cpu'):.2f} s | {median(rows, 'written') / 1e9:.2f} GB"
                         f" | {median(rows, 'rss') / 1e6:.0f} MB | {median(rows, 'wal') / 1e6:.0f} MB"
                         f" | {'–' if longest_s is None else f'{longest_s:.2f} s'}"
                         f" | {'–' if waited is None else f'{waited:.2f} s, locked {locked}×, {rate:.0f} writes/s'}"
                         f" | {ratio('cpu', 'synapse')} | {ratio('cpu', 'floor')} | {ratio('written', 'synapse')} | {ratio('written', 'floor')} |")
    sizes = list(results)
    if len(sizes) > 1:
        lines += ["\n### Growth: how much more per event than at the size before (1.00 = linear)\n", "| | " + " | ".join(f"{a} → {b}" for a, b in zip(sizes, sizes[1:])) + " |",
                  "|---|" + "---|" * (len(sizes) - 1)]
        for way in results[sizes[0]]["runs"]:
            for key in ("cpu", "written"):
                cells = []
                for a, b in zip(sizes, sizes[1:]):
                    per = [median(results[s]["runs"][way], key) / results[s]["about"]["events_below_cut"] for s in (a, b)]
                    cells.append(f"{per[1] / per[0]:.2f}")
                lines.append(f"| {way}, {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sizes", default="10k,100k,1m")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--repeat", type=int, help="runs of each way (default: 3, and 1 for 1m)")
    args = parser.parse_args()
    cache = os.environ.get("ROOMKEEPER_BENCH_DIR")
    if not cache:
        parser.error("set ROOMKEEPER_BENCH_DIR to a directory with some 10 GB of room, outside the repository")
    cache, ways = Path(cache), args.ways.split(",")
    binary = os.environ.get("ROOMKEEPER")
    if {"offline", "beside"} & set(ways) and not binary:
        parser.error("set ROOMKEEPER to the release binary (cargo bench does)")
    for size in args.sizes.split(","):
        multiply.ensure(SIZES[size], cache)
    if os.getloadavg()[0] > 0.7:
        print(f"note: the machine is busy (load {os.getloadavg()[0]:.1f}); believe ratios only, and not much", file=sys.stderr)
    results = {}
    for size in args.sizes.split(","):
        results[size] = measure(size, ways, args.repeat or REPEAT[size], binary, cache)
        (cache / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(report(results))


if __name__ == "__main__":
    main()
