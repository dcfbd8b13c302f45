"""Retention: Synapse's own jobs and roomkeeper's on copies of one aged server, whose rooms have policies of every kind.

What differs must be named by the defect that makes the difference (behaviour.md, section 13).
Alone: tests/synapse/run --plans retention
"""

import json
import time
from dataclasses import dataclass

import database
import promises
import rows
from case import Case
from client import quote
from deviations import Deviations
from keeper import Keeper
from model import History, Rules, read_events
from releases import python_of
from server import SERVER_NAME, Server
from state import StateGroups
from volatile import is_volatile

NAME = "retention"
DAY = 24 * 3600 * 1000
# Between two arrivals; cut-offs at whole days are at least 18 minutes away from any, which is more than a run takes.
STEP, FIRST = 48 * 60 * 1000, 30 * 60 * 1000

# What has come so late is young by every limit that a block of ours sets.
YOUNG = 2 * DAY - 60 * 60 * 1000

# What rooms say, in turn; the last is said and redacted: its row stays, its content is gone.
POLICIES = (
    None,
    {"max_lifetime": DAY},
    {"max_lifetime": 30 * DAY},
    {"max_lifetime": 900 * DAY},
    {"max_lifetime": 0},
    {"min_lifetime": DAY},
    {"max_lifetime": 4000 * DAY},
    {"min_lifetime": DAY, "max_lifetime": 5 * DAY},
)


def job(shortest=None, longest=None):
    bounds = {"shortest_max_lifetime": shortest, "longest_max_lifetime": longest}
    return {"interval": "4s", **{key: value for key, value in bounds.items() if value is not None}}


@dataclass(frozen=True)
class Block:
    name: str
    default: int | None
    jobs: tuple
    least: int | None = None
    most: int | None = None

    def written(self) -> dict:
        block = {"enabled": True, "purge_jobs": list(self.jobs)}
        if self.default is not None:
            block["default_policy"] = {"max_lifetime": self.default}
        for key, value in (("allowed_lifetime_min", self.least), ("allowed_lifetime_max", self.most)):
            if value is not None:
                block[key] = value
        return block


BLOCKS = (
    Block("two jobs", 20 * DAY, (job(longest=3 * DAY), job(shortest=3 * DAY, longest=1000 * DAY))),
    Block(
        "three jobs and limits", 10 * DAY,
        (job(longest=3 * DAY), job(shortest=3 * DAY, longest=31 * DAY), job(shortest=31 * DAY, longest=1000 * DAY)),
        least=2 * DAY, most=25 * DAY,
    ),
    Block("no default", None, (job(),)),
)


class Amended:
    """The interpreter of a server whose configuration gets a retention block just before it starts."""

    def __init__(self, python, home, block):
        self.python, self.home, self.block = python, home, block

    def absolute(self):
        amend(self.home, self.block)
        return self.python.absolute()


def amend(home, block):
    path = home / "homeserver.yaml"
    configuration = json.loads(path.read_text())
    configuration["retention"] = block.written()
    path.write_text(json.dumps(configuration))


def ask(of, sql, *values) -> list:
    with of.session() as session:
        return session.execute(sql, values).fetchall()


class Aged:
    """The template with policies said in its rooms, and with a past."""

    def __init__(self, template, home):
        self.release, self.home = template.release, template.copy(home)
        self.database = database.of(self.home)
        self.shapes = template.shapes
        with Server(python_of(self.release), self.home) as server:
            client = server.client(template.manifest["accounts"]["ann"]["access_token"])
            rooms = [room for room in template.manifest["rooms"] if room["shape"] != "departed"]
            for number, room in enumerate(rooms):
                policy = POLICIES[number % len(POLICIES)]
                path = f"/_matrix/client/v3/rooms/{quote(room['room_id'])}"
                if policy is not None:
                    said = client.call("PUT", f"{path}/state/m.room.retention", policy)["event_id"]
                    if number % len(POLICIES) == len(POLICIES) - 1:
                        client.call("PUT", f"{path}/redact/{quote(said)}/r{number}", {})
            client.close()
        self.age()
        self.late = self.let_some_come_late()
        self.events = read_events(self.database)
        self.tables, self.groups = rows.read_all(self.database), StateGroups(self.database)
        self.policies = {
            room: (least, most)
            for room, least, most in ask(
                self.database,
                "SELECT c.room_id, r.min_lifetime, r.max_lifetime FROM room_retention r"
                " JOIN current_state_events c ON c.event_id = r.event_id AND c.room_id = r.room_id",
            )
        }
        self.rooms = [room for room, in ask(self.database, "SELECT DISTINCT room_id FROM current_state_events")]

    def age(self):
        """The newest event came half an hour ago, each one before it 48 minutes earlier, on rows alone: what is hashed
        stays as it is."""
        self.now = int(time.time() * 1000)
        with self.database.session(write=True) as db:
            streams = [s for s, in db.execute("SELECT stream_ordering FROM events ORDER BY stream_ordering DESC").fetchall()]
            times = [(self.now - FIRST - STEP * n,) * 2 + (stream,) for n, stream in enumerate(streams)]
            db.executemany("UPDATE events SET received_ts = ?, origin_server_ts = ? WHERE stream_ordering = ?", times)
        self.database.settle()

    def let_some_come_late(self) -> dict:
        """In each room the newest of its young messages that nothing refers to lies low in the room's past from now on, as
        if it had come late; by event. Rows alone again: the end of a room stays what it is."""
        with self.database.session(write=True) as db:
            found = db.execute(
                "SELECT e.room_id, e.event_id FROM events e"
                " WHERE e.type = 'm.room.message' AND e.stream_ordering > 0 AND NOT e.outlier AND e.received_ts > ?"
                " AND e.event_id NOT IN (SELECT event_id FROM event_forward_extremities)"
                " AND e.event_id NOT IN (SELECT event_id FROM event_relations)"
                " AND e.event_id NOT IN (SELECT relates_to_id FROM event_relations)"
                " AND e.event_id NOT IN (SELECT redacts FROM redactions)"
                " AND e.event_id NOT IN (SELECT event_id FROM rejections)"
                " ORDER BY e.stream_ordering",
                (self.now - YOUNG,),
            ).fetchall()
            newest = dict(found)
            late = {event_id: room for room, event_id in newest.items()}
            db.executemany(
                "UPDATE events SET depth = 5, topological_ordering = 5 WHERE event_id = ?", [(event,) for event in late],
            )
        self.database.settle()
        return late

    def copy(self, to):
        return database.copy(self.home, to)

    def deepest_extremity(self, room):
        (depth,), = ask(
            self.database,
            "SELECT max(e.depth) FROM event_forward_extremities f JOIN events e USING (event_id) WHERE f.room_id = ?", room,
        )
        return depth

    def stopped_by_its_newest(self, room, cut) -> bool:
        """Defect D: a foreign key holds the event that came last, and it would go."""
        if self.release.schema < 87:
            return False
        rows = ask(self.database, "SELECT event_stream_ordering FROM sliding_sync_joined_rooms WHERE room_id = ?", room)
        held = {stream for stream, in rows}
        return any(
            e.stream_ordering in held and e.depth < cut and not e.is_state for e in self.events.values() if e.room_id == room
        )


def lifetime(block, policy):
    """R-17, as both have it."""
    wanted = (policy and policy[1]) or block.default
    if wanted is None:
        return None
    if block.least is not None:
        wanted = max(wanted, block.least)
    if block.most is not None:
        wanted = min(wanted, block.most)
    return wanted


def bounds(job):
    return job.get("shortest_max_lifetime"), job.get("longest_max_lifetime")


def includes_default(block, job) -> bool:
    """R-11."""
    shortest, longest = bounds(job)
    if block.default is None:
        return False
    return not (shortest is not None and shortest >= block.default) and not (longest is not None and longest < block.default)


def taken_by_synapse(aged, block, job) -> dict:
    """R-12 to the letter: rooms with the policy that is applied to them, and whether only defect A takes them."""
    shortest, longest = bounds(job)
    taken = {}
    for room, (least, most) in aged.policies.items():
        is_bounded = shortest is not None or longest is not None
        in_range = most is not None and (shortest is None or most > shortest) and (longest is None or most <= longest)
        if not is_bounded or in_range or (most is None and includes_default(block, job)):
            taken[room] = ((least, most), False)
    if includes_default(block, job):
        for room in aged.rooms:
            taken.setdefault(room, (None, room in aged.policies))
    return taken


def promised(aged, block, room, job) -> bool:
    """R-11 to R-16 with A and B repaired: the one lifetime a room has decides, before it is clamped."""
    shortest, longest = bounds(job)
    most = aged.policies.get(room, (None, None))[1]
    wanted = most if most else block.default
    return wanted is not None and (shortest is None or wanted > shortest) and (longest is None or wanted <= longest)


def outcome(home) -> dict:
    events = read_events(database.of(home))
    rooms = {}
    for event in events.values():
        rooms.setdefault(event.room_id, {})[event.event_id] = event.outlier
    return rooms


def of_history(history) -> dict:
    rooms = {}
    for event in history.events.values():
        rooms.setdefault(event.room_id, {})[event.event_id] = event.outlier
    return rooms


def let_synapse_run(aged, home, block):
    """Until its jobs have come round and nothing has changed for two rounds."""
    with Server(Amended(python_of(aged.release), home, block), home) as server:
        seen, since, deadline = None, time.monotonic(), time.monotonic() + 150
        begun = time.monotonic()
        while time.monotonic() < deadline:
            time.sleep(0.5)
            now = ask(server.database, "SELECT count(*), sum(CASE WHEN outlier THEN 1 ELSE 0 END) FROM events")
            if now != seen:
                seen, since = now, time.monotonic()
            if time.monotonic() - since > 12 and time.monotonic() - begun > 20:
                await_state_groups(server.database)
                return
    raise RuntimeError("Synapse's retention does not come to an end")


def await_state_groups(database):
    """Until what its purges have marked is gone; marks on groups that are gone stay (I-16)."""
    with database.session() as session:
        there = "state_groups_pending_deletion" in database.tables(session)
    deadline = time.monotonic() + 60
    waiting = "SELECT count(*) FROM state_groups_pending_deletion p JOIN state_groups s ON s.id = p.state_group"
    while there and ask(database, waiting)[0][0]:
        if time.monotonic() > deadline:
            raise RuntimeError("Synapse does not delete the state groups that it has marked")
        time.sleep(0.2)


# A process that is stopped in the middle of its next round leaves its lock behind.
LOCKS = {"worker_read_write_locks", "worker_read_write_locks_mode"}


class Run(Case):
    """The two results of a block, row by row."""

    def __init__(self, aged, synapse, keeper, judged, promised, without_p21, without_r50):
        self.template, self.release, self.shapes = aged, aged.release, aged.shapes
        self.synapse, self.keeper, self.problems = synapse, keeper, []
        self.judged, self.promised, self.without_p21 = judged, promised, without_p21
        self.without_r50, self.without_p51 = without_r50, promised
        self.judge_failed = {}

    def marks_nothing(self, difference) -> bool:
        """I-16: the judge leaves marks on state groups that are gone."""
        return (
            difference.table == "state_groups_pending_deletion"
            and difference.synapse["state_group"] not in self.synapse_groups.rooms
        )

    def compare(self, spared) -> int:
        """Every row that differs, but for rooms that a defect has lost other events; answers how many rooms were compared."""
        self.read_results()
        promises.verify_purged_rows(self)
        # Its jobs come round and round: from the second time on there is nothing to purge (defect H).
        self.promised.empty_purges |= self.judged.cuts.keys() | self.promised.cuts.keys()
        deviations = Deviations()
        for difference in rows.differences(self.synapse_tables, self.keeper_tables):
            room = self.room_of(difference)
            if difference.kept_by_synapse_only and (difference.table in LOCKS or self.marks_nothing(difference)):
                continue
            if room in spared or self._stored_otherwise(difference) or is_volatile(difference):
                continue
            if not deviations.explain(self, difference):
                self.complain(f"{self.name_of(room)}: {difference}")
        return len(set(self.template.rooms) - spared)


def try_block(aged, block, scratch) -> list[str]:
    problems = []
    theirs, ours = aged.copy(scratch / "synapse"), aged.copy(scratch / "roomkeeper")
    let_synapse_run(aged, theirs, block)
    amend(ours, block)
    hand = Keeper(ours, other_way=True)
    planned = hand.run("retention", "plan", "--json")
    if planned.returncode != 0:
        return [f"retention plan: {planned.stderr[-500:]}"]
    plans = json.loads(planned.stdout)["plans"]
    done = hand.run("retention", "run", "--json")
    if done.returncode != 0:
        problems.append(f"retention run: exit {done.returncode}: {done.stderr[-500:]}")
    code, said = hand.check()
    if code != 0:
        problems.append(f"check after the run: {said[-500:]}")
    synapse, keeper = outcome(theirs), outcome(ours)

    past = History(aged.events, Rules(SERVER_NAME))
    judged = History(aged.events, Rules(SERVER_NAME, forgets_redactions=True, purges_by_arrival=True))
    expected = History(aged.events, Rules(SERVER_NAME))
    without_p21 = History(aged.events, Rules(SERVER_NAME, forgets_redactions=True))
    # Ours as far as the judge's jobs go when they come round and round, with defect T.
    without_r50 = History(aged.events, Rules(SERVER_NAME, purges_by_arrival=True))
    names = {room: set() for room in aged.rooms}
    crashes = False

    def cut_of(room, lived, history=past):
        cut = history.cut_before_ts(room, aged.now - lived)
        deepest = aged.deepest_extremity(room)
        return None if cut is None or (deepest is not None and deepest < cut) else cut

    # Its jobs come round and round: where one has taken the event that another one stopped at, that one goes further.
    for each in block.jobs * 3:
        for room, (policy, by_mistake) in taken_by_synapse(aged, block, each).items():
            lived = lifetime(block, policy)
            if lived is None:
                crashes = True  # Defect B; which rooms came before is anybody's guess.
                continue
            cut = cut_of(room, lived, judged)
            if cut is None:
                continue
            if by_mistake and not promised(aged, block, room, each):
                names[room].add("A")
            if aged.stopped_by_its_newest(room, cut):
                names[room].add("D")
                continue
            judged.purge(room, cut, True)
            cut = cut_of(room, lived, without_r50)
            if cut is not None:
                without_r50.purge(room, cut, True)
    for each in block.jobs:
        for room in aged.rooms:
            if promised(aged, block, room, each):
                lived = lifetime(block, aged.policies.get(room))
                cut = cut_of(room, lived)
                if cut is not None:
                    expected.purge(room, cut, True, aged.now - lived)
                    without_p21.purge(room, cut, True, aged.now - lived)
    # What has not expired stays, whoever else differs in what.
    for room in aged.rooms:
        if any(expected.fate_of(event_id) != without_r50.fate_of(event_id) for event_id in past.of_room(room)):
            names[room].add("T")

    meant, mistaken = of_history(expected), of_history(judged)
    due = {due["room_id"] for plan in plans for due in plan["rooms"]}
    before = {room: {e.event_id: e.outlier for e in past.of_room(room).values()} for room in aged.rooms}
    differing = 0
    for room in aged.rooms:
        shape = aged.shapes.get(room, room)
        if keeper.get(room) != meant.get(room):
            problems.append(f"{shape}: roomkeeper left {len(keeper.get(room, {}))} events, promised are {len(meant.get(room, {}))}")
        if (room in due) != (keeper.get(room) != before[room]):
            problems.append(f"{shape}: {'planned and not purged' if room in due else 'purged and not planned'}")
        if synapse.get(room) != mistaken.get(room) and not (crashes and synapse.get(room) == before[room]):
            problems.append(f"{shape}: Synapse left {len(synapse.get(room, {}))} events, the rules say {len(mistaken.get(room, {}))}")
        if synapse.get(room) == keeper.get(room):
            continue
        differing += 1
        if meant.get(room) != mistaken.get(room) and not names[room]:
            names[room].add("E")
        if crashes and synapse.get(room) == before[room]:
            names[room].add("B")
        if not names[room]:
            problems.append(f"{shape}: differs from Synapse's, and no defect says why")
    kept = [event for event, room in aged.late.items() if event in keeper.get(room, {}) and event not in synapse.get(room, {})]
    if not kept and not crashes:
        problems.append("defect T did not show: no late event stays that the judge deletes")
    run = Run(aged, theirs, ours, judged, expected, without_p21, without_r50)
    differ = {room for room in aged.rooms if meant.get(room) != mistaken.get(room) or synapse.get(room) != mistaken.get(room)}
    compared = run.compare({room for room in differ if names[room] - {"E", "T"}})
    problems += run.problems
    if block is BLOCKS[0] and not any("A" in name for name in names.values()):
        problems.append("defect A did not show: the rooms do not try it")
    if block.default is None and not crashes:
        problems.append("defect B did not show: the rooms do not try it")
    told = sorted({name for room in names for name in names[room] if synapse.get(room) != keeper.get(room)})
    print(f"     {aged.release.version}: retention, {block.name}: {len(due)} rooms purged, {differing} differ by {told};"
          f" {len(kept)} late events kept because they have not expired; rows of {compared} rooms compared", flush=True)
    return [f"{block.name}: {problem}" for problem in problems]


def troubles(template, scratch) -> list[str]:
    here = scratch / NAME
    aged = Aged(template, here / "aged")
    return [problem for block in BLOCKS for problem in try_block(aged, block, here / block.name.replace(" ", "-"))]
