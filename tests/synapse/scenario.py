"""The server that the purges are tried on: rooms of many shapes and of every room version worth a test."""

import time

import surgery
from peer import Peer
from rooms import Room, User

# Versions where something relevant changed: event ids (1, 2, 3), redaction rules (6, 9, 11), defaults (10),
# room ids without a server name and creators without a power level (12).
ROOM_VERSIONS = ("1", "2", "3", "6", "9", "10", "11", "12")
PLAIN = "10"
# Older releases do not know all of them; 9 is known to all that we test.
OLD_PLAIN = "9"

TEN_YEARS = 10 * 365 * 24 * 3600 * 1000


class People:
    def __init__(self, server):
        accounts = {name: server.register(name, admin=name == "admin") for name in ("admin", "ann", "bob", "cem", "dee")}
        users = {name: User(server.port, account) for name, account in accounts.items()}
        self.accounts = accounts
        self.admin, self.ann, self.bob, self.cem, self.dee = users.values()


def build(server, big_room_messages) -> dict:
    """Fills an empty server and returns what a manifest needs to know of it."""
    people = People(server)
    known = people.ann.client.get("/_matrix/client/v3/capabilities")["capabilities"]["m.room_versions"]["available"]
    versions = [version for version in ROOM_VERSIONS if version in known]
    plain = PLAIN if PLAIN in versions else OLD_PLAIN
    rooms = [everyday(people, version) for version in versions]
    rooms += [shape(people, plain) for shape in (threads, redactions, state_heavy, mentions, departed)]
    with Peer(server) as eve:
        rooms += [shape(people, plain, eve) for shape in (federated, braided, frayed, late, patchy)]
    # The biggest last: the newest event of the server should stay in a joined room that is not purged to its end.
    rooms += [big(people, plain, big_room_messages), untouched(people, plain)]
    return {
        "accounts": people.accounts,
        "rooms": [
            {"shape": room.shape, "version": room.version, "room_id": room.room_id, "surgery": room.surgery}
            for room in rooms
        ],
    }


def operate(session, rooms):
    """What the API cannot do, on the stopped server."""
    for room in rooms:
        cuts = room.pop("surgery")
        if cuts:
            surgery.make_backfilled(session, cuts["backfilled"])
            for event in cuts["gaps"]:
                surgery.make_gap(session, room["room_id"], event)


def everyday(people, version) -> Room:
    """A bit of everything, in every room version."""
    ann, bob, cem, dee = people.ann, people.bob, people.cem, people.dee
    room = ann.create_room(f"everyday-v{version}", version, topic="the first topic")
    room.invite(ann, bob)
    room.join(bob)
    room.join(cem)
    room.let_many_speak(ann)
    first = room.say(ann, "good morning")
    root_below = room.say(bob, "a thread that begins early")
    for n in range(4):
        room.say(cem, f"small talk {n}")
    room.thread(ann, root_below, "an early answer")
    room.react(bob, first, "👍")
    edited = room.say(ann, "teh weather")
    room.edit(ann, edited, "the weather")
    room.redact(ann, room.say(ann, "a slip of the tongue"))
    gone_topic = room.topic(ann, "a topic that says too much")
    room.redact(ann, gone_topic)
    room.topic(ann, "a better topic")
    room.send(bob, "m.room.encrypted", {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgA", "session_id": "s"})
    room.say(ann, "labelled", **{"org.matrix.labels": ["#work"]})
    room.say(ann, "will expire in ten years", **{"org.matrix.self_destruct_after": int(time.time() * 1000) + TEN_YEARS})
    room.report(bob, room.say(ann, "something rude"))
    room.read(bob, room.say(ann, "read this"))
    room.join(dee)
    room.mention(ann, bob, "are you there")
    room.leave(dee)
    for n in range(4):
        room.say(bob, f"more small talk {n}")
    room.set(ann, "m.room.name", {"name": "renamed"})
    room.reply(cem, first, "late reply to an early message")
    room.thread(cem, root_below, "a late answer in an early thread")
    root_above = room.say(ann, "a thread that begins late")
    room.react(cem, root_below, "🎉")
    room.edit(ann, edited, "the weather, corrected again")
    room.redact(bob, room.say(bob, "another slip"))
    room.ban(ann, cem)
    for n in range(3):
        room.thread(bob, root_above, f"a late answer {n}")
    room.invite(ann, dee)
    room.mention(bob, ann, "look here")
    room.say(bob, "good night")
    return room


def threads(people, version) -> Room:
    """Roots and replies on all sides of any cut (P-20)."""
    ann, bob = people.ann, people.bob
    room = ann.create_room("threads", version)
    room.join(bob)
    roots = []
    for n in range(12):
        roots.append(room.say(ann, f"root {n}"))
        for root in roots[::3]:
            room.thread(bob, root, f"answer in round {n}")
        room.mention(ann, bob, f"call {n}")
        if n % 4 == 1:
            room.redact(ann, room.thread(ann, roots[n // 2], "withdrawn"))
        if n % 4 == 3:
            room.read(bob, room.thread(ann, roots[n // 2], "read in thread"), thread_id=roots[n // 2])
    return room


def redactions(people, version) -> Room:
    """Redactions whose target is state, is a message, is above, is below, is gone (P-21, defect E)."""
    ann, bob = people.ann, people.bob
    room = ann.create_room("redactions", version, topic="original topic")
    room.join(bob)
    room.let_many_speak(ann)
    early = [room.say(bob, f"to be withdrawn late {n}") for n in range(3)]
    for n in range(6):
        topic = room.topic(bob, f"personal data {n}")
        room.say(ann, f"between {n}")
        room.redact(ann, topic)
        room.redact(bob, room.say(bob, f"withdrawn at once {n}"))
    room.redact(ann, room.set(bob, "org.oracle.custom", {"secret": "said by mistake"}, "key"))
    room.say(ann, "a pause")
    for message in early:
        room.redact(ann, message)
    room.say(bob, "the end")
    return room


def state_heavy(people, version) -> Room:
    """More than a hundred state changes in a row: state groups that are not stored as one delta chain (P-33)."""
    ann, bob = people.ann, people.bob
    room = ann.create_room("state-heavy", version)
    room.join(bob)
    room.let_many_speak(ann)
    for n in range(115):
        room.topic(ann if n % 2 else bob, f"topic {n}")
        if n % 5 == 0:
            room.say(bob, f"said under topic {n}")
        if n % 20 == 0:
            room.set(ann, "org.oracle.slot", {"n": n}, f"slot-{n}")
    room.say(ann, "the last word")
    return room


def mentions(people, version) -> Room:
    """Push actions, counted and not yet counted, read and unread (P-14, P-15)."""
    ann, bob, cem = people.ann, people.bob, people.cem
    room = ann.create_room("mentions", version)
    room.join(bob)
    room.join(cem)
    root = room.say(ann, "a thread to be called in")
    for n in range(15):
        room.mention(ann, bob, f"call {n}")
        room.mention(bob, cem, f"call {n}")
        room.thread(cem, root, f"answer {n}")
        if n == 5:
            room.read(bob, room.say(ann, "bob reads up to here"))
        if n == 9:
            room.read(cem, room.say(ann, "cem reads privately"), kind="m.read.private")
    return room


def departed(people, version) -> Room:
    """Nobody is left, one has forgotten it."""
    ann, bob = people.ann, people.bob
    room = ann.create_room("departed", version)
    room.join(bob)
    for n in range(10):
        room.say(ann, f"we shall leave {n}")
    room.leave(bob)
    room.forget(bob)
    for n in range(5):
        room.say(ann, f"alone {n}")
    room.leave(ann)
    return room


def federated(people, version, eve) -> Room:
    """Local and remote senders mixed: what `delete_local_events` is about (P-4 to P-6)."""
    ann, bob = people.ann, people.bob
    room = ann.create_room("federated", version)
    room.join(bob)
    room.let_many_speak(ann)
    eve.join(room)
    root = room.say(ann, "a local root")
    remote_root = eve.say(room, "a remote root")
    for n in range(4):
        eve.say(room, f"from far away {n}")
        ours = room.say(bob, f"from here {n}")
        room.thread(ann, remote_root, f"local in remote thread {n}")
        # A remote redaction of a local message: the message may be kept, and must stay redacted (P-21).
        eve.redact(room, ours)
        eve.redact(room, eve.say(room, f"far away and withdrawn {n}"))
        room.redact(ann, eve.say(room, f"withdrawn by a moderator {n}"))
    eve.topic(room, "a remote topic")
    room.redact(ann, eve.topic(room, "a remote topic, withdrawn"))
    room.thread(bob, root, "an answer")
    before = room.say(ann, "one too many")
    old_authority = eve.authority(room)
    room.set(ann, "m.room.power_levels", {**levels_of(room, ann), "users": {ann.user_id: 100}, "state_default": 50})
    # Not allowed any more: rejected when it names the new levels, soft-failed when it claims not to know them.
    eve.topic(room, "a forbidden topic")
    eve.topic(room, "a topic from before", after=before, by=old_authority)
    for n in range(4):
        eve.say(room, f"still here {n}")
        room.say(bob, f"so are we {n}")
    return room


def levels_of(room, user):
    return user.client.get(f"{room.path}/state/m.room.power_levels")


def braided(people, version, eve) -> Room:
    """Branches that part and meet: several prev events, equal depths, cuts through a branch."""
    ann = people.ann
    room = ann.create_room("braided", version)
    room.let_many_speak(ann)
    knot = eve.join(room)
    for n in range(8):
        side = knot
        for step in range(1 + n % 3):
            side = eve.say(room, f"branch {n}, step {step}", after=side)
        if n % 3 == 0:
            eve.topic(room, f"topic of branch {n}", after=side)
        room.say(ann, f"main line {n}")
        knot = room.say(ann, f"knot {n}")
        eve.redact(room, room.say(ann, f"redacted from afar {n}"))
    room.say(ann, "all together")
    return room


def frayed(people, version, eve) -> Room:
    """Forward extremities below the cut: a message and a state event that nobody came back to (P-3)."""
    ann, bob = people.ann, people.bob
    room = ann.create_room("frayed", version)
    room.join(bob)
    room.let_many_speak(ann)
    eve.join(room)
    low = room.say(ann, "the fork")
    for n in range(12):
        tip = room.say(bob, f"onwards {n}")
    # These arrive after the main line and stay loose ends.
    eve.say(room, "a loose end", after=low)
    eve.topic(room, "a loose topic", after=low)
    eve.say(room, "the newest", after=tip)
    return room


def late(people, version, eve) -> Room:
    """The newest arrival lies deep in the past: its foreign keys stop the judge's purge (P-19, defect D)."""
    ann, bob = people.ann, people.bob
    room = ann.create_room("late", version)
    room.join(bob)
    eve.join(room)
    low = room.say(ann, "the fork")
    for n in range(12):
        room.say(bob, f"onwards {n}")
    eve.say(room, "I was offline", after=low)
    return room


def patchy(people, version, eve) -> Room:
    """Gaps, and history that was backfilled (P-10, defects C and K)."""
    ann, bob = people.ann, people.bob
    room = ann.create_room("patchy", version)
    room.join(bob)
    eve.join(room)
    backfilled = [eve.say(room, f"fetched later {n}") for n in range(5)]
    gaps = []
    for n in range(5):
        room.say(bob, f"before the gap {n}")
        gaps.append(eve.say(room, f"never arrived {n}"))
        room.say(ann, f"after the gap {n}")
        eve.say(room, f"and on {n}")
    room.surgery = {"backfilled": backfilled, "gaps": gaps}
    return room


def untouched(people, version) -> Room:
    """Never purged: every row of it must stay as it is (I-40)."""
    ann, bob = people.ann, people.bob
    room = ann.create_room("untouched", version)
    room.join(bob)
    root = room.say(ann, "leave me alone")
    room.thread(bob, root, "me too")
    room.redact(bob, room.say(bob, "not this"))
    room.mention(ann, bob, "still there")
    return room


def big(people, version, messages) -> Room:
    """Enough events for strides, batches and pages; listed in the public directory."""
    ann, bob, cem = people.ann, people.bob, people.cem
    room = ann.create_room("big", version, room_alias_name="big", visibility="public")
    room.join(bob)
    room.join(cem)
    speakers = (ann, bob, cem)
    for n in range(messages):
        event = room.say(speakers[n % 3], f"message {n} of many words")
        if n % 50 == 0:
            room.topic(ann, f"after {n} messages")
        if n % 40 == 7:
            room.react(bob, event, "👍")
        if n % 100 == 13:
            room.thread(cem, event, "an aside")
    return room
