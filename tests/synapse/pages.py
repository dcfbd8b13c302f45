"""Both page every room at the same time, from the same file, as every kind of reader (I-70 … I-74).

Synapse runs; roomkeeper's daemon runs beside it; nobody writes.  The same request goes to both, with a token that the
one or the other has given, and the parsed answers must be the same, numbers compared as they are written.  What may
differ is on the list `DIFFERENCES`, with the rule that wants it so; an entry that nothing uses is an error.
"""

import json
import socket
import subprocess
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

import clients
import server as server_module
import windows
from client import Client, quote
from keeper import binary, environment
from releases import python_of
from server import Server, free_port

ADMIN = "admin"  # the admin variant, by an admin
PREFIXES = ("v3", "r0", "api/v1", "unstable")

FILTERS = (
    {"types": ["m.room.message"]},
    {"types": ["m.room.*", "org.oracle.odd"], "not_types": ["m.room.member"]},
    {"not_types": ["m.room.message"]},
    {"types": []},
    {"senders": []},
    {"senders": ["@ann:oracle.test", "@bob:oracle.test"]},
    {"not_senders": ["@ann:oracle.test"]},
    {"contains_url": True},
    {"contains_url": False, "types": ["m.room.message", "m.sticker"]},
    {"org.matrix.labels": ["#work", "#fun"]},
    {"org.matrix.not_labels": ["#work"]},
    {"related_by_senders": ["@bob:oracle.test"]},
    {"related_by_rel_types": ["m.thread", "m.reference"]},
    {"related_by_senders": ["@bob:oracle.test"], "related_by_rel_types": ["m.reference"]},
    {"related_by_rel_types": []},
    {"lazy_load_members": True},
    {"rooms": ["!elsewhere:oracle.test"]},
    {"not_rooms": ["!elsewhere:oracle.test"], "unknown": 1, "limit": 1},
    {"event_format": "federation"},
    {"types": ["m.room.mess*ge"]},
    {},
)

# Where no filter matters: shapes whose rooms are paged by every filter.
FILTERED = ("talk", "everyday-v1", "everyday-v12", "window-shared")


# The template's rooms that a quick run pages.
SAMPLED = ("everyday-v1", "everyday-v12", "redactions", "federated", "patchy", "departed")


@dataclass(frozen=True)
class Answer:
    status: int
    body: object


class Reader:
    """One connection to each of the two, as one user."""

    def __init__(self, ports, token):
        self._clients = [Client(port, token) for port in ports]

    def ask(self, path) -> tuple[Answer, Answer]:
        """The judge's answer and ours."""
        return tuple(self._ask(client, path) for client in self._clients)

    @staticmethod
    def _ask(client, path) -> Answer:
        headers = {"Authorization": f"Bearer {client.token}"} if client.token else {}
        status, text = client._exchange("GET", path, None, headers)
        # Numbers as they are written: 1, 1.0 and 1e0 are three texts.
        return Answer(status, json.loads(text, parse_int=str, parse_float=str))

    def close(self):
        for client in self._clients:
            client.close()


class Daemon:
    """roomkeeper's daemon beside a running server."""

    def __init__(self, home: Path):
        self.home, self.port = home, free_port()

    def __enter__(self):
        ours = {"roomkeeper": {"listen": [f"127.0.0.1:{self.port}"], "homeserver": {"running": "beside"}}}
        (self.home / "roomkeeper.yaml").write_text(json.dumps(ours))
        command = [binary(), "serve", "-c", "homeserver.yaml", "-c", "roomkeeper.yaml"]
        self._log = open(self.home / "roomkeeper.log", "ab")
        self._process = subprocess.Popen(command, cwd=self.home, env=environment(self.home), stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return self
            except OSError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.05)
        raise RuntimeError(f"roomkeeper did not start: {(self.home / 'roomkeeper.log').read_text()[-3000:]}")

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


class Differences:
    """The differences that are meant, each with its rule."""

    def __init__(self):
        self.used = {}

    def explains(self, release, walk, ours, theirs) -> bool:
        for rule, explains in RULES.items():
            if explains(release, walk, ours, theirs):
                self.used[rule] = self.used.get(rule, 0) + 1
                return True
        return False


def departed_reads_on(release, walk, ours, theirs) -> bool:
    """Defect F: forwards, the judge lets a departed user read what came after they left; we end there."""
    if walk.direction != "f" or not walk.is_departed or ours.status != 200 or theirs.status != 200:
        return False
    theirs_ids = [event["event_id"] for event in theirs.body["chunk"]]
    ours_ids = [event["event_id"] for event in ours.body["chunk"]]
    return theirs_ids[: len(ours_ids)] == ours_ids and ours.body["chunk"] == theirs.body["chunk"][: len(ours_ids)]


def inner_stars(release, walk, ours, theirs) -> bool:
    """M-54: a `*` inside a type is a letter like others; the judge's query takes it for any letters, and then its filter
    does not, so that pages are empty in another way."""
    return walk.filter == {"types": ["m.room.mess*ge"]} and not ours.body["chunk"] and not theirs.body["chunk"]


RULES = {"M-24 (defect F)": departed_reads_on, "M-54": inner_stars}


@dataclass
class Walk:
    """One way through one room."""

    shape: str
    room_id: str
    who: str
    direction: str
    limit: int
    filter: dict | None = None
    is_departed: bool = False
    prefix: str = "v3"

    def __str__(self):
        wanted = f", filter {json.dumps(self.filter)}" if self.filter is not None else ""
        return f"{self.shape} as {self.who}, dir={self.direction}, limit={self.limit}{wanted}"

    def path(self, token) -> str:
        query = {"dir": self.direction, "limit": self.limit}
        if token:
            query["from"] = token
        if self.filter is not None:
            query["filter"] = json.dumps(self.filter)
        base = "/_synapse/admin/v1" if self.who == ADMIN else f"/_matrix/client/{self.prefix}"
        return f"{base}/rooms/{quote(self.room_id)}/messages?{urllib.parse.urlencode(query)}"


def without_ages(value, ages):
    """The value without ages, which are collected: they depend on when each was asked."""
    if isinstance(value, list):
        return [without_ages(item, ages) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, item in sorted(value.items()):
        if name == "age" and isinstance(item, str):
            ages.append(int(item))
        else:
            kept[name] = without_ages(item, ages)
    return kept


def room_part(token):
    return token.split("_")[0] if token else token


def lazy(event):
    """A lazily loaded member without what the judge has at hand only while its cache is warm (M-83)."""
    unsigned = {name: value for name, value in event["unsigned"].items() if name not in ("prev_content", "prev_sender")}
    return {**{name: value for name, value in event.items() if name != "prev_content"}, "unsigned": unsigned}


def plain(answer) -> tuple[Answer, list[int]]:
    """An answer as it can be compared."""
    ages = []
    body = answer.body
    if isinstance(body, dict):
        body = dict(body)
        for name in ("start", "end"):
            if name in body:
                # Releases know different numbers of keys (M-3).
                body[name] = room_part(body[name])
        if "state" in body:
            body["state"] = [lazy(event) for event in sorted(body["state"], key=lambda event: event["event_id"])]
    return Answer(answer.status, without_ages(body, ages)), ages


def first_difference(theirs, ours, path="") -> str:
    if type(theirs) is not type(ours):
        return f"{path}: {str(theirs)[:300]} != {str(ours)[:300]}"
    if isinstance(theirs, dict):
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                if name not in theirs or name not in ours:
                    value = theirs.get(name, ours.get(name))
                    return f"{path}/{name}: only {'Synapse' if name in theirs else 'roomkeeper'} has it: {str(value)[:300]}"
                return first_difference(theirs[name], ours[name], f"{path}/{name}")
    if isinstance(theirs, list):
        if len(theirs) != len(ours):
            names = [[item.get("event_id") if isinstance(item, dict) else item for item in side] for side in (theirs, ours)]
            return f"{path}: {len(theirs)} items != {len(ours)}: {str(names)[:600]}"
        for n, (one, other) in enumerate(zip(theirs, ours)):
            if one != other:
                return first_difference(one, other, f"{path}/{n}")
    return f"{path}: {str(theirs)[:300]} != {str(ours)[:300]}"


class Comparison:
    def __init__(self, release, differences):
        self.release, self.differences = release, differences
        self.problems, self.requests, self.events = [], 0, 0

    def compare(self, name, theirs, ours, walk=None) -> bool:
        self.requests += 1
        (theirs, their_ages), (ours, our_ages) = plain(theirs), plain(ours)
        if theirs == ours:
            if len({a - b for a, b in zip(their_ages, our_ages)}) > 1 or len(their_ages) != len(our_ages):
                self.problems.append(f"{name}: ages differ by more than one constant")
            return True
        if walk is not None and self.differences.explains(self.release, walk, ours, theirs):
            return False
        if theirs.status != ours.status:
            self.problems.append(f"{name}: {theirs.status} {str(theirs.body)[:200]} != {ours.status} {str(ours.body)[:200]}")
        else:
            self.problems.append(f"{name}: {first_difference(theirs.body, ours.body)}")
        return False

    def walk(self, reader, walk, most_pages=60):
        """From the end to the end, with the tokens of the one and of the other in turn."""
        token = None
        for number in range(most_pages):
            theirs, ours = reader.ask(walk.path(token))
            if not self.compare(f"{walk}, from {token}", theirs, ours, walk):
                return
            if ours.status != 200 or "end" not in ours.body:
                return
            self.events += len(ours.body["chunk"])
            token = (theirs, ours)[number % 2].body["end"]


def parameters(room_id) -> list[str]:
    """Odd requests: both must decline them in the same words, or answer the same."""
    path = f"/_matrix/client/v3/rooms/{quote(room_id)}/messages"
    return [
        f"{path}?dir=x", f"{path}?dir=", f"{path}?from=nonsense", f"{path}?to=nonsense", f"{path}?from=END",
        f"{path}?from=", f"{path}?limit=-1", f"{path}?limit=x", f"{path}?limit=0", f"{path}?limit=0&dir=b",
        f"{path}?filter=x", f"{path}?filter=0", f"{path}?filter=[]", f"{path}?raw=true&dir=b", f"{path}?raw=&limit=2",
        f"{path}", f"{path}?dir=b&dir=f", f"{path}?from=t5-5", f"{path}?from=s5", f"{path}?from=t5-5_0_0",
        f"{path}?from=m5~99.7", f"{path}?limit=2000&dir=b", f"{path}?from=t0-0&dir=b", f"{path}?from=s20&dir=b",
        f"{path}?from=t3-3&to=t1-1", f"{path}?from=t3-3&to=t1-1&dir=b", f"{path}?from=s900&to=s5&dir=b&limit=100",
        f"{path}?from=t3-20&to=t9-100&limit=100", f"{path}?to=t9-100&limit=100&dir=b", f"{path}?from=t-1-5",
    ]


def is_judge(release) -> bool:
    """The newest release judges pages: older ones lack much of what we answer (M-85, M-88, M-89)."""
    return release.version == "1.163.2"


def judge(template, scratch, differences, quick=False) -> tuple[list[str], str]:
    """What differs, and how much was compared."""
    release = template.release
    home = template.copy(scratch / "pages")
    old = server_module.write_configuration

    def write(to, port):
        path = old(to, port)
        if to == home:
            configuration = json.loads(path.read_text())
            configuration["retention"] = {"enabled": True}
            del configuration["roomkeeper"]
            path.write_text(json.dumps(configuration))
        return path

    server_module.write_configuration = write
    try:
        with Server(python_of(release), home) as server:
            people, rooms = windows.build(server, template.manifest["accounts"])
            spaces = clients.build(people)
            people.close()
            settle(server.database)
            with Daemon(home) as daemon:
                comparison = Comparison(release, differences)
                known = [room for room in template.manifest["rooms"] if not quick or room["shape"] in SAMPLED]
                ports = (server.port, daemon.port)
                compare_all(comparison, ports, people, known, rooms, quick)
                admin = Reader(ports, people.accounts[ADMIN]["access_token"])
                looked_into = [room["room_id"] for room in known] + [room.room_id for room in rooms]
                clients.compare(comparison, admin, spaces, looked_into)
                admin.close()
    finally:
        server_module.write_configuration = old
    return comparison.problems, f"{comparison.requests} requests, {comparison.events} events"


def settle(database):
    """Until nothing is written any more: the erased user leaves the rooms a little later."""
    before, newest = None, 0
    while before != newest:
        before = newest
        time.sleep(2)
        with database.session() as session:
            (newest,) = session.execute("SELECT max(stream_ordering) FROM events").fetchone()


def compare_all(comparison, ports, people, old_rooms, new_rooms, quick):
    readers = {name: Reader(ports, account["access_token"]) for name, account in people.accounts.items() if name != "era"}
    left = {(room.room_id, who) for room in new_rooms for who in ("cem",) if room.shape != "talk"}
    left |= {(room.room_id, "joe") for room in new_rooms if room.shape == "shutters"}
    left |= {(room["room_id"], who) for room in old_rooms if room["shape"].startswith("everyday") for who in ("dee",)}
    left |= {(room["room_id"], "ann") for room in old_rooms if room["shape"] == "departed"}
    everyone = [(room["shape"], room["room_id"], who) for room in old_rooms for who in ("ann", "bob", "cem", "dee", ADMIN)]
    everyone += [
        (room.shape, room.room_id, who) for room in new_rooms for who in ("ann", *windows.READERS, "mal", ADMIN)
    ]
    prefixes = 0
    for shape, room_id, who in everyone:
        for direction in "bf":
            for limit in (3, 100) if shape != "big" and not quick else (100,):
                walk = Walk(shape, room_id, who, direction, limit, is_departed=(room_id, who) in left)
                walk.prefix = PREFIXES[prefixes % len(PREFIXES)]
                prefixes += 1
                comparison.walk(readers[who], walk)
    for shape, room_id, who in everyone:
        if shape in FILTERED and who in (("bob", ADMIN) if quick else ("ann", "bob", "cem", ADMIN)):
            for wanted in FILTERS:
                for direction in "bf":
                    walk = Walk(shape, room_id, who, direction, 7, wanted, is_departed=(room_id, who) in left)
                    comparison.walk(readers[who], walk)
    for room_id in (new_rooms[0].room_id, "!unknown:oracle.test", "nonsense"):
        for path in parameters(room_id):
            for who in ("bob", "joe", ADMIN):
                path = path if who != ADMIN else path.replace("/_matrix/client/v3", "/_synapse/admin/v1")
                comparison.compare(f"{path} as {who}", *readers[who].ask(path))
    for reader in readers.values():
        reader.close()
