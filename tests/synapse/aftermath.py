"""Life goes on: Synapse starts on what roomkeeper left, serves, takes messages, and purges again."""

import judge
from client import Refused, quote
from plans import Purge
from releases import python_of
from server import Server


# Several pages for the biggest room, but not many: a page of an old Synapse on SQLite takes its time.
PAGE = 400


def troubles(case):
    """Whatever goes wrong.  The copy is changed by it, and of no other use afterwards."""
    manifest = case.template.manifest
    with Server(python_of(case.release), case.keeper) as server:
        admin = server.client(case.template.admin_token)
        ann = server.client(manifest["accounts"]["ann"]["access_token"])
        ann.get("/_matrix/client/v3/sync", timeout=0)
        for room in manifest["rooms"]:
            room_id, shape = room["room_id"], room["shape"]
            if case.release.admins_page:
                yield from paged_by_admin(case, admin, room)
            elif not page_to_the_end(ann, f"/_matrix/client/v3/rooms/{quote(room_id)}/messages", "b"):
                # A member is not shown all that an admin is: then it is enough that there is something.
                yield f"{shape}: nothing to be seen"
            try:
                newest = say(ann, room_id, "life goes on")
            except Refused as refused:
                if shape != "departed":
                    yield f"{shape}: no message taken: {refused}"
                continue
            verdict, reason = judge.purge(admin, Purge(room_id, True, before_event=newest))
            if verdict != judge.DONE:
                yield f"{shape}: the next purge by Synapse: {verdict} {reason}"
        admin.close()
        ann.close()
    log = (case.keeper / "homeserver.log").read_text()
    for line in log.splitlines():
        if " ERROR " in line or " CRITICAL " in line:
            yield f"Synapse's log: {line}"


def paged_by_admin(case, admin, room, warm=False):
    """Everything that is to be seen is seen, once, in both directions (I-70).

    A `warm` server still remembers that a redaction was one of something, and shows it.
    """
    shape = room["shape"]
    path = f"/_synapse/admin/v1/rooms/{quote(room['room_id'])}/messages"
    backwards, forwards = page_to_the_end(admin, path, "b"), page_to_the_end(admin, path, "f")
    expected, seen = visible(case, room["room_id"]), set(backwards)
    if warm:
        seen -= {event_id for event_id in seen & case.keeper_events.keys() if case.keeper_events[event_id].redacts} - expected
    if seen != expected:
        yield f"{shape}: paging misses {sorted(expected - seen)}, has {sorted(seen - expected)} too many"
        return
    if len(set(backwards)) != len(backwards):
        yield f"{shape}: a page repeats an event"
    # Older releases leave backfilled events out when they page forwards.
    live = [event_id for event_id in reversed(backwards) if case.keeper_events[event_id].stream_ordering > 0]
    if live != [event_id for event_id in forwards if case.keeper_events[event_id].stream_ordering > 0]:
        yield f"{shape}: paging backwards and forwards differ"


def visible(case, room_id) -> set:
    """What Synapse shows of a room: no outliers, nothing rejected, no redaction of what is not there (M-37)."""
    return {
        event.event_id
        for event in case.keeper_events.values()
        if event.room_id == room_id
        and not event.outlier
        and not event.rejected
        and (event.redacts is None or event.redacts in case.keeper_events)
    }


def page_to_the_end(client, path, direction) -> list[str]:
    found, position = [], {}
    while True:
        page = client.get(path, dir=direction, limit=PAGE, **position)
        found += [event["event_id"] for event in page["chunk"]]
        if not page["chunk"] or "end" not in page:
            return found
        position = {"from": page["end"]}


def say(client, room_id, text) -> str:
    path = f"/_matrix/client/v3/rooms/{quote(room_id)}/send/m.room.message/oracle-afterwards"
    return client.put(path, {"msgtype": "m.text", "body": text})["event_id"]
