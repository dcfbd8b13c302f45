"""People speak and page while a running Synapse and roomkeeper purge the same rooms at the same time (W-1 … W-8).

Nobody is refused or kept waiting for long, a room is never held by two at once, and in the end everything that was said
meanwhile is there.

Alone: tests/synapse/run --plans live [--engine postgres]
"""

import itertools
import threading
import time

import database
import judge
from aftermath import page_to_the_end
from client import Refused, quote
from keeper import Keeper
from model import read_events
from peer import Peer
from plans import SPARED, Purge
from releases import python_of
from rooms import Room
from server import Server

NAME = "live"
LOCKS = "worker_read_write_locks"
# Why one of us may decline: the other has been there already, or is at it (L-8).
REASONS = ("Could not find event", "History purge already in progress")
# On SQLite a purge of Synapse's reads into a temporary table before it writes, in one transaction; whoever commits between
# the two makes it fail at once, five times over. An admin asks again.
MET_A_WRITER = "database is locked"
ATTEMPTS = 10
# Nobody may be kept waiting longer to say something; a busy machine needs some of it for itself.
PATIENCE = 10


class Crowd:
    """What people do meanwhile, each in a thread of their own, until told to stop."""

    def __init__(self, server, template, rooms):
        self.server, self.template, self.rooms = server, template, rooms
        self.said, self.longest, self.pages, self.looks, self.held = [], 0.0, 0, 0, set()
        self.troubles = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._until_told, args=(work,)) for work in (self.speak, self.page, self.watch)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _until_told(self, work):
        try:
            work()
        except Exception as error:
            self.troubles.append(f"{work.__name__}: {type(error).__name__}: {error}")

    def _turns(self):
        return itertools.takewhile(lambda _: not self._stop.is_set(), enumerate(itertools.cycle(self.rooms)))

    def speak(self):
        client = self.server.client(self.template.manifest["accounts"]["ann"]["access_token"])
        for n, room in self._turns():
            started = time.monotonic()
            path = f"/_matrix/client/v3/rooms/{quote(room)}/send/m.room.message/live-{n}"
            self.said.append((room, client.put(path, {"msgtype": "m.text", "body": f"meanwhile {n}"})["event_id"]))
            self.longest = max(self.longest, time.monotonic() - started)
        client.close()

    def page(self):
        client = self.server.client(self.template.admin_token)
        for _, room in self._turns():
            page_to_the_end(client, f"/_synapse/admin/v1/rooms/{quote(room)}/messages", "b")
            self.pages += 1
        client.close()

    def watch(self):
        """Whoever holds a room for writing holds it alone."""
        with self.server.database.session(write=True) as session:
            for _ in self._turns():
                sql = f"SELECT lock_key, lock_name, write_lock, instance_name FROM {LOCKS}"
                holders = {}
                for key, name, write, who in session.execute(sql).fetchall():
                    holders.setdefault((key, name), []).append((bool(write), who))
                    self.held.add(who)
                # Each look is a snapshot of its own.
                session.commit()
                for (key, name), held in holders.items():
                    if len(held) > 1 and any(write for write, _ in held):
                        self.troubles.append(f"{key}: {name} is held by {held}")
                self.looks += 1
                time.sleep(0.005)


def troubles(template, scratch):
    home = template.copy(scratch / NAME)
    rooms = {
        room["room_id"]: [event["event_id"] for event in room["events"]]
        for room in template.manifest["rooms"]
        if room["shape"] in ("big", "state-heavy", "federated", "threads")
    }
    with Server(python_of(template.release), home) as server:
        hand = Keeper(home)
        hand.beside = True
        done = 0
        with Crowd(server, template, list(rooms)) as crowd:
            by_synapse = threading.Thread(target=let_synapse_purge, args=(server, template, rooms, crowd.troubles))
            by_synapse.start()
            for share in (0.3, 0.5, 0.7, 0.9):
                if share == 0.9:
                    # Where we have been further, Synapse's purge finds nothing and takes every mark of a gap away (P-7 is
                    # ours alone). A purge that comes after it sets them again.
                    by_synapse.join()
                for room, events in rooms.items():
                    order = Purge(room, True, before_event=events[round(share * (len(events) - 1))])
                    code, said = hand.purge(order)
                    done += code == 0
                    if code != 0 and not any(reason in said for reason in REASONS):
                        yield f"purge of {order}: exit {code}: {said[-500:]}"
        yield from crowd.troubles
        if not crowd.said or not crowd.pages or not crowd.looks or done < len(rooms):
            yield f"too little was tried: {len(crowd.said)} said, {crowd.pages} paged, {crowd.looks} looks, {done} purges"
        if crowd.longest > PATIENCE:
            yield f"somebody waited {crowd.longest:.1f} s to say something"
        if "roomkeeper" not in crowd.held:
            yield f"roomkeeper's lock was never seen, only those of {crowd.held}"
        yield from loose_ends_stay(server, hand, template)
        admin = server.client(template.admin_token)
        for room in rooms:
            seen = set(page_to_the_end(admin, f"/_synapse/admin/v1/rooms/{quote(room)}/messages", "b"))
            lost = [event for where, event in crowd.said if where == room and event not in seen]
            if lost:
                yield f"{room}: {len(lost)} messages that were said meanwhile are not seen"
        admin.close()
        judge.await_state_groups(server.database)
        marks = judge.forget_marks_of_nothing(server.database)
        print(
            f"     {template.release.version}: live: {done} purges by roomkeeper, {len(crowd.said)} said, the slowest in {crowd.longest:.2f} s,"
            f" {crowd.pages} rooms paged, locks of {sorted(crowd.held)} seen in {crowd.looks} looks,"
            f" {marks} marks of groups that had gone (P-46)",
            flush=True,
        )
    yield from afterwards(template, home, crowd)


class Returning(Peer):
    """The remote server of the template once more: its key is known, its first transactions have been used."""

    def _introduce(self, verify_key):
        self._transactions = 1_000


def loose_ends_stay(server, hand, template):
    """P-51: this Synapse remembers the room's forward extremities. They stay with their events, and so people can go on."""
    (frayed,) = [room for room in template.manifest["rooms"] if room["shape"] == "frayed"]
    room = Room("frayed", frayed["version"], frayed["room_id"], None)
    said = {
        body: event_id for event_id, body in template.bodies.items()
        if event_id in template.events and template.events[event_id].room_id == room.room_id
    }
    with Returning(server) as eve:
        # A room is remembered from the first event that comes to it on.
        late = eve.say(room, "one more loose end", after=said["onwards 0"])
    code, text = hand.purge(Purge(room.room_id, True, before_event=said["the newest"]))
    if code != 0:
        yield f"frayed: exit {code}: {text[-500:]}"
    events = read_events(server.database)
    for what, event_id in (("the late one", late), ("the old one", said["a loose end"])):
        if event_id not in events or events[event_id].outlier:
            yield f"frayed: {what} of the loose ends did not stay in the timeline"
    if said["onwards 1"] in events:
        yield "frayed: nothing was purged"
    client = server.client(template.manifest["accounts"]["ann"]["access_token"])
    for n in range(3):
        path = f"/_matrix/client/v3/rooms/{quote(room.room_id)}/send/m.room.message/frayed-{n}"
        try:
            client.put(path, {"msgtype": "m.text", "body": f"after the purge {n}"})
        except Refused as refused:
            yield f"frayed: message {n} after the purge: {refused}"
    client.close()


def let_synapse_purge(server, template, rooms, troubles):
    """The same rooms, at other points, at the same time; where roomkeeper has been further, there is nothing to do."""
    client = server.client(template.admin_token)
    for share in (0.2, 0.4):
        for room, events in reversed(rooms.items()):
            order = Purge(room, True, before_event=events[round(share * (len(events) - 1))])
            for _ in range(ATTEMPTS):
                verdict, reason = judge.purge(client, order)
                if verdict != judge.FAILED or reason != MET_A_WRITER:
                    break
            if verdict == judge.FAILED:
                troubles.append(f"Synapse's purge of {room} beside ours: {reason}")
    client.close()


def afterwards(template, home, crowd):
    kept = database.of(home)
    yield from kept.flaws()
    events = read_events(kept)
    for room, event in crowd.said:
        if event not in events:
            yield f"{event}, said in {room} meanwhile, is gone"
    before, spared = template.events, {room for room, shape in template.shapes.items() if shape == SPARED}
    for event in before.values():
        if event.room_id in spared and events.get(event.event_id) != event:
            yield f"{event.event_id} of a room that nobody purged is not as it was"
    code, said = Keeper(home).check()
    if code != 0:
        yield f"roomkeeper check: {said}"
    with kept.session() as session:
        (left,) = session.execute(f"SELECT count(*) FROM {LOCKS}").fetchone()
    if left:
        yield f"{left} locks were left behind"
    for line in (home / "homeserver.log").read_text().splitlines():
        if " ERROR " in line or " CRITICAL " in line:
            yield f"Synapse's log: {line}"
