"""What clients for admins look up, asked of both at the same time: contexts, spaces, users, media, tasks, extremities.

Part of `pages`: the same server, the same daemon beside it, and the same rules of comparing.
"""

import json
import time
import urllib.parse

from client import quote

CONTEXT_FILTERS = (None, {"types": ["m.room.message"]}, {"lazy_load_members": True}, {"not_types": ["m.room.member"]})

USERS = (
    "", "deactivated=true", "deactivated=false", "guests=false", "admins=true", "admins=false", "locked=true",
    "name=an", "name=AN", "name=oracle", "user_id=oracle", "user_id=bob", "order_by=displayname", "order_by=creation_ts&dir=b",
    "order_by=admin&dir=b", "order_by=deactivated", "order_by=is_guest", "order_by=shadow_banned", "order_by=user_type",
    "order_by=avatar_url", "order_by=locked", "not_user_type=bot", "not_user_type=", "not_user_type=bot&not_user_type=",
    "limit=2", "limit=2&from=1&dir=b", "limit=0", "from=1000", "limit=-1", "limit=x", "order_by=x", "dir=x", "guests=1",
)


def build(people):
    """A space of ann's, with a room, a space within it that names the first again, and children that are none."""
    ann = people.ann.client

    def create(name, space=True):
        body = {"name": name, "preset": "public_chat", "topic": f"About {name}"}
        if space:
            body["creation_content"] = {"type": "m.space"}
        return ann.post("/_matrix/client/v3/createRoom", body)["room_id"]

    outer, inner, plain, gone = create("outer"), create("inner"), create("plain", False), create("gone", False)
    by_space = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": outer}, {"type": "x"}]}
    ann.put(f"/_matrix/client/v3/rooms/{quote(plain)}/state/m.room.join_rules/", by_space)
    via = {"via": ["oracle.test"]}
    for parent, child, content in (
        (outer, plain, {**via, "order": "b", "suggested": True}),
        (outer, inner, {**via, "order": "a"}),
        (outer, gone, via),
        (outer, gone, {}),
        (inner, plain, via),
        (inner, outer, {**via, "order": "\u00e4"}),
        (inner, gone, {**via, "order": 5}),
    ):
        ann.put(f"/_matrix/client/v3/rooms/{quote(parent)}/state/m.space.child/{quote(child)}", content)
    return outer, inner, plain


def compare(comparison, admin, spaces, rooms):
    """`admin` asks both; `rooms` are the ids of the rooms to look into."""
    v1 = "/_synapse/admin/v1"

    def same(path, change=lambda body: body):
        theirs, ours = admin.ask(path)
        bodies = [change(dict(one.body)) if isinstance(one.body, dict) else one.body for one in (theirs, ours)]
        comparison.compare(path, type(theirs)(theirs.status, bodies[0]), type(ours)(ours.status, bodies[1]))
        return theirs, ours

    for query in USERS:
        for version in ("v2", "v3"):
            same(f"/_synapse/admin/{version}/users?{query}", unseen)
    for room in rooms:
        same(f"{v1}/room/{quote(room)}/media")
        same(f"{v1}/rooms/{quote(room)}/forward_extremities", by_event)
        newest = admin.ask(f"{v1}/rooms/{quote(room)}/messages?dir=b&limit=40")[1].body["chunk"]
        for event in newest[::13] + newest[-1:]:
            for number, limit in enumerate((0, 1, 6, 10)):
                query = {"limit": limit}
                if CONTEXT_FILTERS[number] is not None:
                    query["filter"] = json.dumps(CONTEXT_FILTERS[number])
                same(f"{v1}/rooms/{quote(room)}/context/{quote(event['event_id'])}?{urllib.parse.urlencode(query)}")
    for path in (
        f"{v1}/rooms/{quote(rooms[0])}/context/$nothing", f"{v1}/rooms/{quote(rooms[0])}/context/{quote(newest[0]['event_id'])}?limit=x",
        f"{v1}/rooms/{quote(rooms[-1])}/context/{quote(newest[0]['event_id'])}?filter=x", f"{v1}/room/!no:oracle.test/media",
        f"{v1}/rooms/!no:oracle.test/forward_extremities", f"{v1}/rooms/nonsense/forward_extremities",
        f"{v1}/scheduled_tasks?max_timestamp=x", f"{v1}/scheduled_tasks?status=complete&action_name=nothing",
    ):
        same(path)
    for number, path in enumerate(
        [f"{v1}/rooms/{quote(space)}/hierarchy{query}" for space in spaces for query in ("", "?max_depth=0", "?max_depth=1", "?limit=2")]
        + [f"{v1}/rooms/{quote(spaces[0])}/hierarchy?{query}" for query in ("max_depth=-1", "limit=x", "from=nonsense")]
    ):
        # It lets one admin ask ten times at once, and then five times a second.
        time.sleep(0.25)
        same(path, without_token)
    # Its tasks come and go by themselves: what both say must be the same where it said the same before and after.
    path = f"{v1}/scheduled_tasks"
    for _ in range(20):
        before, ours = admin.ask(path)
        after, _ = admin.ask(path)
        if before == after:
            tasks = [sorted(one.body["scheduled_tasks"], key=lambda task: task["id"]) for one in (before, ours)]
            comparison.compare(path, type(ours)(200, {"tasks": tasks[0]}), type(ours)(200, {"tasks": tasks[1]}))
            break
    else:
        comparison.problems.append(f"{path}: it never said the same twice")


def unseen(body):
    """Users without when they were last seen, which asking changes."""
    if "users" in body:
        body["users"] = [{name: value for name, value in user.items() if name != "last_seen_ts"} for user in body["users"]]
    return body


def by_event(body):
    if "results" in body:
        body["results"] = sorted(body["results"], key=lambda one: one["event_id"])
    return body


def without_token(body):
    """Whether there is more; how that is asked for is each one's own affair."""
    if "next_batch" in body:
        body["next_batch"] = True
    return body
