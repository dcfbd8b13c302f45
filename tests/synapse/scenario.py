"""The server that the purges are tried on: rooms of many shapes and of every room version worth a test."""

from rooms import Room, User

# Versions where something relevant changed: event ids (1, 2, 3), redaction rules (6, 9, 11), defaults (10),
# room ids without a server name and creators without a power level (12).
ROOM_VERSIONS = ("1", "2", "3", "6", "9", "10", "11", "12")
PLAIN = "10"
# Older releases do not know all of them; 9 is known to all that we test.
OLD_PLAIN = "9"

BIG_ROOM_MESSAGES = 1500


class People:
    def __init__(self, server):
        accounts = {name: server.register(name, admin=name == "admin") for name in ("admin", "ann", "bob", "cem", "dee")}
        users = {name: User(server.port, account) for name, account in accounts.items()}
        self.accounts = accounts
        self.admin, self.ann, self.bob, self.cem, self.dee = users.values()


def build(server) -> dict:
    """Fills an empty server and returns what a manifest needs to know of it."""
    people = People(server)
    known = people.ann.client.get("/_matrix/client/v3/capabilities")["capabilities"]["m.room_versions"]["available"]
    versions = [version for version in ROOM_VERSIONS if version in known]
    plain = PLAIN if PLAIN in versions else OLD_PLAIN
    rooms = [everyday(people, version) for version in versions]
    rooms += [shape(people, plain) for shape in (threads, redactions, state_heavy, mentions, departed, untouched, big)]
    return {
        "accounts": people.accounts,
        "rooms": [{"shape": room.shape, "version": room.version, "room_id": room.room_id} for room in rooms],
    }


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
    for n in range(130):
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


def big(people, version) -> Room:
    """Enough events for strides, batches and pages; listed in the public directory."""
    ann, bob, cem = people.ann, people.bob, people.cem
    room = ann.create_room("big", version, room_alias_name="big", visibility="public")
    room.join(bob)
    room.join(cem)
    speakers = (ann, bob, cem)
    for n in range(BIG_ROOM_MESSAGES):
        event = room.say(speakers[n % 3], f"message {n} of many words")
        if n % 50 == 0:
            room.topic(ann, f"after {n} messages")
        if n % 40 == 7:
            room.react(bob, event, "👍")
        if n % 100 == 13:
            room.thread(cem, event, "an aside")
    return room
