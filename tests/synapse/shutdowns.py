"""Rooms shut down by Synapse on one copy of a server and by roomkeeper on another: row by row, and then life goes on.

    tests/synapse/run --plans shutdown [--versions …]
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import database
import judge
import rows
import server as server_module
from client import Refused, quote
from keeper import Keeper
from labels import Labels
from plans import Purge
from releases import python_of
from removals import await_recalculation, delete
from server import Server
from state import StateGroups
from volatile import VOLATILE

NAME = "shutdown"
MESSAGE = "This room is gone. Ask the moderators why."
ROOM_NAME = "What became of it"

# How a state group is stored is each program's own affair; what it means is compared event by event.
GROUPS = {"state_groups", "state_groups_state", "state_group_edges", "event_to_state_groups"}

# What Synapse works out by itself at or after its next start, from where it has read to (D-50), and what it may leave
# out: nobody is notified of the end of a room (D-48).
CATCHES_UP = {
    "room_stats_current", "room_stats_state", "room_stats_earliest_token", "user_stats_current", "stats_incremental_position",
    "user_directory", "user_directory_stream_pos", "users_in_public_rooms", "users_who_share_private_rooms",
    "user_directory_stale_remote_users", "federation_stream_position", "federation_inbound_events_staging",
    "appservice_stream_position", "cache_invalidation_stream_by_instance", "event_push_actions",
    "event_push_actions_staging", "event_push_summary", "event_push_summary_stream_ordering", "device_lists_stream",
    "device_lists_changes_in_room", "device_lists_outbound_pokes", "device_lists_changes_converted_stream_position",
    "event_push_summary_last_receipt_stream_id", "receipts_linearized", "receipts_graph", "stream_positions",
    "event_edges", "event_forward_extremities", "stream_ordering_to_exterm", "background_updates", "user_signature_stream",
    "delayed_events_stream_pos", "sliding_sync_joined_rooms_to_recalculate", "user_directory_search", "destination_rooms", "device_federation_outbox",
}


def with_settings(original):
    """A server's own settings beside the common ones: `settings.json` in its directory."""

    def write(home: Path, port: int) -> Path:
        path = original(home, port)
        settings = home / "settings.json"
        if settings.exists():
            path.write_text(json.dumps({**json.loads(path.read_text()), **json.loads(settings.read_text())}, indent=2))
        return path

    return write


server_module.write_configuration = with_settings(server_module.write_configuration)


@dataclass(frozen=True)
class Order:
    """One room to be shut down."""

    room_id: str
    shape: str
    # Of the new room; none: no new room.
    version: str | None
    block: bool = True


@dataclass
class Outcome:
    kicked: set = field(default_factory=set)
    failed: set = field(default_factory=set)
    aliases: list = field(default_factory=list)
    new_room: str | None = None

    @classmethod
    def of(cls, answer: dict):
        return cls(
            set(answer["kicked_users"]), set(answer["failed_to_kick_users"]), sorted(answer["local_aliases"]),
            answer["new_room_id"],
        )


def orders_of(made) -> list[Order]:
    """Every shape of room is shut down: into a new room of each version, some into none; one is spared."""
    versions = [room["version"] for room in made.manifest["rooms"] if room["shape"].startswith("everyday-v")]
    orders = []
    for n, room in enumerate(made.manifest["rooms"]):
        shape = room["shape"]
        if shape == "untouched":
            continue
        version = room["version"] if shape.startswith("everyday-v") else versions[n % len(versions)]
        if shape in ("threads", "mentions"):
            version = None
        orders.append(Order(room["room_id"], shape, version, block=shape != "redactions"))
    # Rooms of one version together: the setting is read at start. Those without a new room first.
    return sorted(orders, key=lambda order: int(order.version or 0))


def settle(home: Path, version: str | None):
    """From now on this server makes rooms of that version."""
    settings = {"default_room_version": version} if version else {}
    # Who blocks and who moves aliases is the same for both.
    settings["roomkeeper"] = {"admin_user": "@admin:oracle.test"}
    (home / "settings.json").write_text(json.dumps(settings))
    configuration = home / "homeserver.yaml"
    configuration.write_text(json.dumps({**json.loads(configuration.read_text()), **settings}, indent=2))


def by_version(orders):
    versions = dict.fromkeys(order.version for order in orders)
    return [(version, [order for order in orders if order.version == version]) for version in versions]


def shut_down_by_synapse(made, home, orders) -> dict:
    outcomes = {}
    creator = made.manifest["accounts"]["ann"]["user_id"]
    for version, mine in by_version(orders):
        settle(home, version)
        with Server(python_of(made.release), home) as server:
            client = server.client(made.admin_token)
            for order in mine:
                body = {"block": order.block, "purge": False, "message": MESSAGE, "room_name": ROOM_NAME}
                if order.version:
                    body["new_room_user_id"] = creator
                path = f"/_synapse/admin/v1/rooms/{quote(order.room_id)}"
                outcomes[order.room_id] = Outcome.of(client.call("DELETE", path, body))
            client.close()
    return outcomes


def shut_down_by_keeper(made, home, orders) -> dict:
    outcomes = {}
    creator = made.manifest["accounts"]["ann"]["user_id"]
    keeper = Keeper(home, other_way=True)
    for order in orders:
        settle(home, order.version)
        new = ["--new-room-user", creator, "--room-name", ROOM_NAME, "--message", MESSAGE] if order.version else []
        block = ["--block"] * order.block
        done = keeper.run("--json", "delete-room", order.room_id, "--no-purge", *block, *new)
        if done.returncode != 0:
            raise RuntimeError(f"{order.shape}: exit {done.returncode}: {done.stdout}{done.stderr}")
        answer = json.loads(done.stdout)
        outcomes[order.room_id] = Outcome.of(answer["progress"]["shutdown_room"])
    return outcomes


def lasting(tables: dict) -> dict:
    """Without what changes by itself, and without what is told by others' rows as well."""
    left = {}
    for name, table in tables.items():
        dropped = {column for volatile, columns, _ in VOLATILE if volatile == name for column in columns or table.columns}
        # A new room's first events are one batch for Synapse, whose changes stand at the first of them.
        dropped |= {"stream_id"} if name == "current_state_delta_stream" else set()
        kept = [n for n, column in enumerate(table.columns) if column not in dropped]
        if kept:
            counted = Counter()
            for row, count in table.rows.items():
                counted[tuple(row[n] for n in kept)] += count
            left[name] = rows.Table(tuple(table.columns[n] for n in kept), (), counted)
    return left


def newest(of) -> int:
    with of.session() as session:
        return session.execute("SELECT max(stream_ordering) FROM events").fetchone()[0]


class Shutdowns:
    """All that was done to the two copies."""

    def __init__(self, made, scratch: Path):
        self.made, self.release = made, made.release
        self.since = newest(made.database)
        self.synapse, self.keeper = made.copy(scratch / "synapse"), made.copy(scratch / "keeper")
        self.orders = orders_of(made)
        self.by_synapse = shut_down_by_synapse(made, self.synapse, self.orders)
        self.by_keeper = shut_down_by_keeper(made, self.keeper, self.orders)

    def troubles(self):
        yield from self.check()
        yield from self.answers()
        yield from self.differences()

    def check(self):
        code, text = Keeper(self.keeper).check()
        if code != 0:
            yield f"check: exit {code}: {text}"

    def answers(self):
        for order in self.orders:
            theirs, ours = self.by_synapse[order.room_id], self.by_keeper[order.room_id]
            for what in ("failed", "aliases"):
                if getattr(theirs, what) != getattr(ours, what):
                    yield f"{order.shape}: {what}: Synapse {getattr(theirs, what)}, roomkeeper {getattr(ours, what)}"
            # Defect R: older releases leave those behind who are only invited.
            left_behind = ours.kicked - theirs.kicked
            if theirs.kicked - ours.kicked or (left_behind and self.release.version != "1.79.0"):
                yield f"{order.shape}: kicked: Synapse {sorted(theirs.kicked)}, roomkeeper {sorted(ours.kicked)}"
            if bool(theirs.new_room) != bool(ours.new_room):
                yield f"{order.shape}: new room: Synapse {theirs.new_room}, roomkeeper {ours.new_room}"

    def labels(self, home, outcomes) -> Labels:
        shapes = {order.room_id: order.shape for order in self.orders}
        successors = {outcome.new_room: shapes[room] for room, outcome in outcomes.items() if outcome.new_room}
        return Labels(database.of(home), self.since, successors)

    def differences(self):
        """Whatever either of them wrote and the other did not, in words that both share."""
        theirs, ours = self.labels(self.synapse, self.by_synapse), self.labels(self.keeper, self.by_keeper)
        left = theirs.tables(lasting(rows.read_all(database.of(self.synapse))))
        right = ours.tables(lasting(rows.read_all(database.of(self.keeper))))
        # Defect R again: events that only a newer release would write.
        only_ours = set(ours.events.values()) - set(theirs.events.values())
        skipped = only_ours if self.release.version == "1.79.0" else set()
        if self.release.invited_join:
            # D-8: these releases have those join the new room who were only invited to the old one, or knocked.
            only_theirs, meant = set(theirs.events.values()) - set(ours.events.values()), self.joins_of_invited()
            if only_theirs != meant:
                yield f"events that only Synapse wrote: {sorted(only_theirs ^ meant)} are not the joins of those invited"
            skipped |= meant
        implied = 0
        for table in sorted(left.keys() | right.keys()):
            if table in GROUPS or table in CATCHES_UP:
                continue
            for row in (left[table] - right[table]).elements():
                if table == "event_auth_chain_links" and ours.reaches(dict(row)["from"], dict(row)["to"]):
                    # V-4: at schema 84 readers follow links of links, and the release still writes those out.
                    implied += 1
                    continue
                if not self.is_meant(table, dict(row), skipped):
                    yield f"{table}: only Synapse has {rows.brief(dict(row))}"
            for row in (right[table] - left[table]).elements():
                if not self.is_meant(table, dict(row), skipped):
                    yield f"{table}: only roomkeeper has {rows.brief(dict(row))}"
        if implied and self.release.schema != 84:
            yield f"{implied} links between chains that follow from others, of a release that does not write such"
        states_left = theirs.states(StateGroups(database.of(self.synapse)))
        states_right = ours.states(StateGroups(database.of(self.keeper)))
        for label in sorted(states_left.keys() & states_right.keys()):
            before, after = states_left[label], states_right[label]
            # Whether others had left already is a matter of order; what is no membership is not.
            for key in sorted(before.keys() | after.keys()):
                if key[0] != "m.room.member" and before.get(key) != after.get(key):
                    yield f"state after {label}: {key}: Synapse {before.get(key)}, roomkeeper {after.get(key)}"

    def joins_of_invited(self) -> set:
        """The joins of a new room that those would write who were not in the old one."""
        shapes = {order.room_id: order.shape for order in self.orders if order.version}
        with self.made.database.session() as session:
            members = session.execute(
                "SELECT room_id, user_id FROM local_current_membership WHERE membership IN ('invite', 'knock')"
            ).fetchall()
        creator = self.made.manifest["accounts"]["ann"]["user_id"]
        return {
            f"<1. m.room.member {user} by {user} in <the room after {shapes[room]}>>"
            for room, user in members if room in shapes and user != creator
        }

    def is_meant(self, table, row, skipped) -> bool:
        """The differences that are meant."""
        # Who leaves last takes the others' memberships out of the current state with them (D-24); we let those go first
        # who are only invited, Synapse whoever comes first.
        if table == "current_state_delta_stream" and row["type"] == "m.room.member":
            if row["room_id"] in {order.room_id for order in self.orders}:
                return True
        if skipped and any(value in skipped for value in row.values() if isinstance(value, str)):
            return True
        if self.release.version == "1.79.0" and table in ("local_current_membership", "room_memberships", "current_state_events"):
            return True
        return False

    def life_goes_on(self):
        """Synapse starts on what roomkeeper left: people find what was promised to them."""
        accounts = self.made.manifest["accounts"]
        names = {account["user_id"]: name for name, account in accounts.items()}
        with Server(python_of(self.release), self.keeper) as server:
            clients = {user: server.client(accounts[name]["access_token"]) for user, name in names.items()}
            ann = clients[accounts["ann"]["user_id"]]
            syncs = {user: client.get("/_matrix/client/v3/sync", timeout=0) for user, client in clients.items()}
            for order in self.orders:
                outcome = self.by_keeper[order.room_id]
                for user in outcome.kicked:
                    joined = rooms_of(syncs[user])
                    if order.room_id in joined:
                        yield f"{order.shape}: {user} still sees the old room"
                yield from self.is_shut(order, outcome, clients)
                if outcome.new_room:
                    yield from self.is_open(order, outcome, clients, syncs, ann)
            yield from self.purge_by_synapse(server, clients)
            for client in clients.values():
                client.close()
        code, text = Keeper(self.keeper).check()
        # Its deletes leave marks on state groups that are gone (I-16), and its older purges edges of such (defect J).
        own = {"I-16", "I-8"} if "J" in self.release.defects else {"I-16"}
        broken = [line for line in text.splitlines() if "is violated" in line and line.split()[0] not in own]
        if broken or code not in (0, 1):
            yield f"check after Synapse's own purges: exit {code}: {text}"
        log = (self.keeper / "homeserver.log").read_text()
        for line in log.splitlines():
            if " ERROR " in line or " CRITICAL " in line or "corrupt" in line.lower():
                yield f"Synapse's log: {line}"

    def purge_by_synapse(self, server, clients):
        """Synapse purges the history of both rooms, then all of the old one (I-64)."""
        admin = next(client for user, client in clients.items() if user.startswith("@admin:"))
        await_recalculation(self.keeper)
        for order in self.orders:
            new = self.by_keeper[order.room_id].new_room
            for what, room in (("old", order.room_id), ("new", new)):
                newest = newest_event(server.database, room) if room else None
                if newest is None:
                    continue
                verdict, reason = judge.purge(admin, Purge(room, True, before_event=newest))
                if verdict != judge.DONE:
                    yield f"{order.shape}: Synapse's purge of the {what} room: {verdict} {reason}"
                left = count(server.database, "SELECT count(*) FROM events WHERE room_id = ? AND NOT outlier", room)
                if left != 1:
                    yield f"{order.shape}: Synapse's purge of the {what} room left {left} events in its timeline"
        judge.await_state_groups(server.database)
        for order in self.orders:
            new = self.by_keeper[order.room_id].new_room
            status = delete(admin, order.room_id)
            if status["status"] != "complete":
                yield f"{order.shape}: Synapse cannot delete the old room: {status}"
            for table in ("rooms", "events", "event_json", "state_events", "room_memberships", "current_state_events"):
                left = count(server.database, f"SELECT count(*) FROM {table} WHERE room_id = ?", order.room_id)
                if left:
                    yield f"{order.shape}: Synapse's delete left {left} rows of {table}"
            if new:
                members = admin.get(f"/_synapse/admin/v1/rooms/{quote(new)}/members")["members"]
                kicked = self.by_keeper[order.room_id].kicked
                if kicked and not set(members) & kicked:
                    yield f"{order.shape}: after Synapse's purges the new room has {members}"

    def is_shut(self, order, outcome, clients):
        user = next(iter(sorted(outcome.kicked)), None)
        if user is None:
            return
        try:
            clients[user].post(f"/_matrix/client/v3/join/{quote(order.room_id)}")
            if order.block:
                yield f"{order.shape}: {user} could join the blocked room"
        except Refused as refused:
            if order.block and refused.status != 403:
                yield f"{order.shape}: joining the blocked room: {refused}"

    def is_open(self, order, outcome, clients, syncs, ann):
        room = outcome.new_room
        path = f"/_matrix/client/v3/rooms/{quote(room)}"
        members = ann.get(f"{path}/joined_members")["joined"]
        for user in members:
            seen = rooms_of(syncs[user]).get(room)
            if seen is None:
                yield f"{order.shape}: {user} does not see the new room"
                continue
            bodies = [event["content"].get("body") for event in seen["timeline"]["events"]]
            if MESSAGE not in bodies:
                yield f"{order.shape}: {user} does not see the notice: {bodies}"
        for alias in outcome.aliases:
            found = ann.get(f"/_matrix/client/v3/directory/room/{quote(alias)}")["room_id"]
            if found != room:
                yield f"{order.shape}: {alias} leads to {found}"
        state = {event["type"]: event["content"] for event in ann.get(f"{path}/state")}
        if state["m.room.name"]["name"] != ROOM_NAME:
            yield f"{order.shape}: the new room is called {state['m.room.name']}"
        sent = ann.put(f"{path}/send/m.room.message/after-{order.shape}", {"msgtype": "m.text", "body": "is this on"})
        page = ann.get(f"{path}/messages", dir="b", limit=50)["chunk"]
        if page[0]["event_id"] != sent["event_id"] or len(page) < 7:
            yield f"{order.shape}: the new room shows {[event['type'] for event in page]}"
        others = sorted(members.keys() - {ann_id(clients, ann)})
        if others:
            try:
                clients[others[0]].put(f"{path}/send/m.room.message/silent", {"msgtype": "m.text", "body": "may I"})
                yield f"{order.shape}: {others[0]} may speak in the new room"
            except Refused as refused:
                if refused.status != 403:
                    yield f"{order.shape}: speaking in the new room: {refused}"
        # Newcomers still get in, and the room can be purged and left like any other.
        admin = next(client for user, client in clients.items() if user.startswith("@admin:"))
        admin.post(f"/_matrix/client/v3/join/{quote(room)}")
        admin.post(f"{path}/leave")


def count(database, sql, *values) -> int:
    with database.session() as session:
        return session.execute(sql, values).fetchone()[0]


def newest_event(database, room):
    """The deepest end of a room, up to which a purge takes everything else; none where that is an outlier."""
    with database.session() as session:
        found = session.execute(
            "SELECT e.event_id FROM event_forward_extremities f JOIN events e USING (event_id)"
            " WHERE f.room_id = ? AND NOT e.outlier ORDER BY e.depth DESC, e.stream_ordering DESC LIMIT 1", (room,),
        ).fetchone()
    return found and found[0]


def rooms_of(sync) -> dict:
    return sync.get("rooms", {}).get("join", {})


def ann_id(clients, ann) -> str:
    return next(user for user, client in clients.items() if client is ann)

