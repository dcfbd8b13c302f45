"""Rooms to look into from everywhere: each history visibility and the changes between them, and readers of every kind."""

import itertools

from rooms import Room, User

VISIBILITIES = ("world_readable", "shared", "invited", "joined")
PLAIN = "10"
OLD_PLAIN = "9"

# What each reader is to the rooms below: still there, gone, gone and forgotten, asked in, thrown out, never there.
READERS = ("bob", "cem", "dee", "hal", "ivy", "joe")


class Company:
    """The people of the template, and more."""

    def __init__(self, server, accounts):
        self.accounts = dict(accounts)
        for name in ("hal", "ivy", "joe", "mal", "era"):
            self.accounts[name] = server.register(f"window-{name}")
        for name, account in self.accounts.items():
            setattr(self, name, User(server.port, account))

    def close(self):
        for name in self.accounts:
            getattr(self, name).client.close()


def build(server, accounts) -> tuple[Company, list[Room]]:
    """Makes the rooms on a running server, and answers them with their people."""
    people = Company(server, accounts)
    ann = people.ann
    known = ann.client.get("/_matrix/client/v3/capabilities")["capabilities"]["m.room_versions"]["available"]
    plain = PLAIN if PLAIN in known else OLD_PLAIN
    rooms = [window(people, plain, visibility) for visibility in VISIBILITIES]
    rooms += [shutters(people, plain), expired(people, plain), talk(people, "11" if "11" in known else plain)]
    path = f"/_matrix/client/v3/user/{people.bob.user_id}/account_data/m.ignored_user_list"
    people.bob.client.put(path, {"ignored_users": {people.mal.user_id: {}}})
    path = f"/_synapse/admin/v1/deactivate/{people.era.user_id}"
    people.admin.client.post(path, {"erase": True})
    return people, rooms


def seen(people, version, shape, visibility, **options) -> Room:
    initial = [{"type": "m.room.history_visibility", "state_key": "", "content": {"history_visibility": visibility}}]
    return people.ann.create_room(shape, version, initial_state=initial, **options)


def chatter(room, people, when):
    """What is said by somebody ordinary, somebody ignored, and somebody who will be erased."""
    for who in (people.ann, people.mal, people.era):
        room.say(who, f"{when}, says {who.user_id}")


def come_and_go(room, people, when):
    """Every reader comes to what they are to the room."""
    ann = people.ann
    for who in (people.mal, people.era):
        room.join(who)
    chatter(room, people, "before anybody came")
    room.invite(ann, people.bob)
    chatter(room, people, "while bob is invited")
    room.join(people.bob)
    chatter(room, people, "with bob")
    for who in (people.cem, people.dee, people.ivy):
        room.join(who)
    chatter(room, people, "with all")
    room.leave(people.cem)
    room.leave(people.dee)
    room.forget(people.dee)
    room.ban(ann, people.ivy)
    room.invite(ann, people.hal)
    chatter(room, people, "after some have left")


def window(people, version, visibility) -> Room:
    """One visibility all the time."""
    ann, bob, mal = people.ann, people.bob, people.mal
    room = seen(people, version, f"window-{visibility}", visibility)
    come_and_go(room, people, "one")
    root = room.say(ann, "a root")
    room.thread(bob, root, "heard")
    for n in range(2):
        room.thread(mal, root, f"ignored {n}")
    edited = room.say(people.era, "original of the erased")
    room.edit(people.era, edited, "edited by the erased")
    slip = room.say(ann, "a slip")
    room.redact(ann, slip)
    room.set(ann, "m.room.join_rules", {"join_rule": "invite"})
    room.send(ann, "m.call.invite", {"call_id": "1", "lifetime": 1, "version": "1", "offer": {}})
    return room


def shutters(people, version) -> Room:
    """Every change from one visibility to another, with somebody coming and going in each."""
    room = seen(people, version, "shutters", "shared")
    come_and_go(room, people, "at first")
    for before, after in itertools.permutations(VISIBILITIES, 2):
        for visibility in (before, after):
            room.set(people.ann, "m.room.history_visibility", {"history_visibility": visibility})
            chatter(room, people, f"as {visibility}")
    room.set(people.ann, "m.room.history_visibility", {"history_visibility": "no such word"})
    chatter(room, people, "as no word")
    room.set(people.ann, "m.room.history_visibility", {})
    room.invite(people.ann, people.joe)
    chatter(room, people, "as nothing")
    room.leave(people.joe)
    return room


def expired(people, version) -> Room:
    """Everything but the state is too old, as soon as it is there."""
    room = seen(people, version, "expired", "shared")
    room.set(people.ann, "m.room.retention", {"max_lifetime": 1})
    come_and_go(room, people, "long ago")
    return room


def talk(people, version) -> Room:
    """Relations of all kinds, on messages of all kinds, in a version whose redactions name their target in the content."""
    ann, bob, mal, cem = people.ann, people.bob, people.mal, people.cem
    room = seen(people, version, "talk", "shared")
    for who in (bob, mal, cem):
        room.join(who)
    room.let_many_speak(ann)
    first = room.say(ann, "to be referred to")
    for who in (ann, mal, bob):
        room.send(who, "m.room.message", {"msgtype": "m.text", "body": "see there", "m.relates_to": {"rel_type": "m.reference", "event_id": first}})
    edited = room.say(ann, "version 0")
    for n in range(3):
        room.edit(ann, edited, f"version {n + 1}")
    room.edit(bob, edited, "not his to edit")
    last = room.edit(ann, edited, "withdrawn version")
    room.redact(ann, last)
    for starter in (ann, mal):
        root = room.say(starter, "a thread")
        replies = [room.thread(who, root, f"reply {n}") for n, who in enumerate((bob, mal, cem, mal))]
        room.edit(cem, replies[2], "reply, corrected")
        room.send(bob, "m.room.message", {"msgtype": "m.text", "body": "quoting", "m.relates_to": {"rel_type": "m.reference", "event_id": replies[2]}})
        room.react(ann, replies[0], "👍")
    lonely = room.say(ann, "all replies are ignored")
    room.thread(mal, lonely, "nobody hears me")
    room.redact(ann, room.thread(bob, lonely, "withdrawn reply"))
    gone = room.say(ann, "root to be withdrawn")
    room.thread(bob, gone, "orphan")
    room.edit(ann, gone, "edited before it went")
    room.redact(ann, gone)
    room.send(ann, "m.room.message", {"msgtype": "m.image", "body": "a.png", "url": "mxc://oracle.test/a"})
    room.send(ann, "m.sticker", {"body": "s", "url": 5, "info": {}})
    room.say(ann, "labelled", **{"org.matrix.labels": ["#work", "#fun"]})
    room.say(bob, "labelled, too", **{"org.matrix.labels": ["#work"]})
    odd = {"m.relates_to": {"rel_type": "org.odd", "event_id": first, "n": 10**15}, "numbers": [0, -1, 10**15], "text": "\u2028\"\\\u0001é😀"}
    room.send(ann, "org.oracle.odd", odd)
    room.send(ann, "m.room.messages", {"body": "almost a message"})
    room.topic(ann, "one")
    withdrawn = room.topic(ann, "two")
    room.topic(ann, "three")
    room.redact(ann, withdrawn)
    slip = room.say(ann, "redaction to be redacted")
    room.redact(ann, room.redact(ann, slip))
    room.set(ann, "m.room.member", {"membership": "join", "displayname": "Ann", "reason": "new name"}, ann.user_id)
    return room
