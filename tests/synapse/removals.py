"""Deleting rooms: Synapse moves the people out, then Synapse and roomkeeper delete the rows on two copies.

Alone: tests/synapse/run --plans removals
"""

import json
import time

import database
import rows
from client import Refused, quote
from keeper import Keeper
from releases import python_of
from server import Server
from volatile import is_volatile

# Somebody stays in this one.
KEPT = "untouched"
BLOCKED = "threads"
UNKNOWN = "!nobody-knows:oracle.test"
EMPTY = {"kicked_users": [], "failed_to_kick_users": [], "local_aliases": [], "new_room_id": None}

# What Synapse leaves behind and roomkeeper does not (E-10).
LEFTOVERS = {
    "threads", "event_labels", "event_expiry", "room_retention", "timeline_gaps", "room_ban_redactions", "room_alias_servers",
}
GROUPS = {"state_groups": "id", "state_groups_state": "state_group", "state_group_edges": "state_group",
          "state_groups_pending_deletion": "state_group"}


def delete(client, room_id, **wanted):
    """By Synapse; the result when it is over."""
    started = client.call("DELETE", f"/_synapse/admin/v2/rooms/{quote(room_id)}", wanted)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        status = client.get(f"/_synapse/admin/v2/rooms/delete_status/{started['delete_id']}")
        if status["status"] in ("complete", "failed"):
            return status
        time.sleep(0.05)
    raise RuntimeError(f"Synapse does not finish with {room_id}")


def columns(home, sql) -> list:
    with database.of(home).session() as session:
        return session.execute(sql).fetchall()


def await_recalculation(home):
    time.sleep(2)
    deadline = time.monotonic() + 60
    table = "sliding_sync_joined_rooms_to_recalculate"
    with database.of(home).session() as session:
        is_there = table in database.of(home).tables(session)
    while is_there and time.monotonic() < deadline:
        if not columns(home, f"SELECT 1 FROM {table}"):
            return
        time.sleep(0.2)


class Removal:
    def __init__(self, template, scratch):
        self.template, self.scratch = template, scratch
        self.python = python_of(template.release)
        rooms = template.manifest["rooms"]
        self.rooms = {room["room_id"]: room["shape"] for room in rooms if room["shape"] != KEPT}
        self.kept = next(room["room_id"] for room in rooms if room["shape"] == KEPT)

    def troubles(self):
        self.move_people_out()
        self.let_synapse_delete()
        yield from self.let_keeper_delete()
        yield from self.compare()
        yield from self.life_goes_on()
        yield from self.beside()

    def copy(self, of, name):
        return database.copy(of, self.scratch / name, "homeserver.pid")

    def move_people_out(self):
        self.before = self.template.copy(self.scratch / "removals-before")
        with Server(self.python, self.before) as server:
            client = server.client(self.template.admin_token)
            for room_id in self.rooms:
                status = delete(client, room_id, purge=False)
                assert status["status"] == "complete", status
            client.close()
            # Statistics and directories follow after a while.
            time.sleep(3)
        with Server(self.python, self.before):
            time.sleep(3)
        with database.of(self.before).session(write=True) as session:
            # Older releases leave the invited behind (defect R); roomkeeper would move them, and write events.
            sql = "DELETE FROM local_current_membership WHERE membership IN ('invite', 'knock') AND room_id = ?"
            session.executemany(sql, [(room,) for room in self.rooms])
        self.groups = dict(columns(self.before, "SELECT id, room_id FROM state_groups"))
        self.events = dict(columns(self.before, "SELECT event_id, room_id FROM events"))
        self.aliases = dict(columns(self.before, "SELECT room_alias, room_id FROM room_aliases"))

    def let_synapse_delete(self):
        self.synapse = self.copy(self.before, "removals-synapse")
        with Server(self.python, self.synapse) as server:
            client = server.client(self.template.admin_token)
            # While a start recalculates the lists of rooms, its deletes fail on foreign keys (E-11).
            await_recalculation(self.synapse)
            self.verdicts = {
                room_id: delete(client, room_id, block=shape == BLOCKED) for room_id, shape in self.everything().items()
            }
            client.close()
            time.sleep(1)

    def everything(self):
        return {**self.rooms, UNKNOWN: BLOCKED}

    def let_keeper_delete(self):
        self.keeper = self.copy(self.before, "removals-roomkeeper")
        hand = Keeper(self.keeper, other_way=True)
        for room_id, shape in self.everything().items():
            flags = ["--block"] * (shape == BLOCKED)
            sizes = self.sizes()
            planned = hand.run("--json", "delete-room", room_id, "--dry-run", *flags)
            plan = json.loads(planned.stdout)
            done = hand.run("--json", "delete-room", room_id, *flags)
            job = json.loads(done.stdout)
            verdict = self.verdicts[room_id]
            if (done.returncode == 0) != (verdict["status"] == "complete"):
                yield f"{shape}: Synapse {verdict}, roomkeeper {done.stdout}{done.stderr}"
            told = job["progress"]["shutdown_room"]
            if told != EMPTY or (verdict["shutdown_room"] or EMPTY) != EMPTY:
                yield f"{shape}: somebody was left: Synapse {verdict['shutdown_room']}, roomkeeper {told}"
            if plan["rows_removed"] != job["progress"]["rows_removed"]:
                yield f"{shape}: planned {plan['rows_removed']}, done {job['progress']['rows_removed']}"
            now = self.sizes()
            for table, count in plan["rows_removed"].items():
                if table in sizes and sizes[table] - now[table] != count:
                    yield f"{shape}: {table} lost {sizes[table] - now[table]} rows, planned were {count}"
        code, said = hand.check()
        if code != 0:
            yield f"roomkeeper check: {said}"

    def sizes(self):
        kept = database.of(self.keeper)
        with kept.session() as session:
            return {name: session.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
                    for name in kept.tables(session) if name != "event_search"}

    def compare(self):
        synapse, keeper = (rows.read_all(database.of(home)) for home in (self.synapse, self.keeper))
        for difference in rows.differences(synapse, keeper):
            if not is_volatile(difference) and not self.is_meant(difference):
                yield str(difference)

    def is_meant(self, difference) -> bool:
        table, row = difference.table, difference.row
        if table == "blocked_rooms":
            # Each says who asked.
            return difference.changed() == {"user_id"}
        if not difference.kept_by_synapse_only:
            return False
        if table in LEFTOVERS:
            room = row.get("room_id") or self.events.get(row.get("event_id")) or self.aliases.get(row.get("room_alias"))
            return room in self.rooms
        if table in GROUPS:
            # Groups that no event of the room had any more (E-12), and marks of groups that are gone (P-46).
            return self.groups.get(row[GROUPS[table]]) in self.rooms
        return False

    def life_goes_on(self):
        with Server(self.python, self.keeper) as server:
            admin = server.client(self.template.admin_token)
            ann = server.client(self.template.manifest["accounts"]["ann"]["access_token"])
            synced = ann.get("/_matrix/client/v3/sync", timeout=0)
            joined = synced.get("rooms", {}).get("join", {})
            for room_id, shape in self.rooms.items():
                if room_id in joined:
                    yield f"{shape}: still in the sync"
                try:
                    admin.get(f"/_synapse/admin/v1/rooms/{quote(room_id)}")
                    yield f"{shape}: Synapse still knows it"
                except Refused as refused:
                    if refused.status != 404:
                        yield f"{shape}: {refused}"
            for room_id in [room for room, shape in self.everything().items() if shape == BLOCKED]:
                try:
                    ann.post(f"/_matrix/client/v3/join/{quote(room_id)}", {})
                    yield f"{room_id} is blocked and was joined"
                except Refused as refused:
                    if refused.status != 403:
                        yield f"joining a blocked room: {refused}"
            path = f"/_matrix/client/v3/rooms/{quote(self.kept)}/send/m.room.message/after-removal"
            ann.put(path, {"msgtype": "m.text", "body": "life goes on"})
            made = ann.post("/_matrix/client/v3/createRoom", {"preset": "private_chat"})
            path = f"/_matrix/client/v3/rooms/{quote(made['room_id'])}/send/m.room.message/new"
            ann.put(path, {"msgtype": "m.text", "body": "a new room"})
            status = delete(admin, made["room_id"])
            if status["status"] != "complete":
                yield f"Synapse cannot delete any more: {status}"
            admin.close()
            ann.close()
        for line in (self.keeper / "homeserver.log").read_text().splitlines():
            if " ERROR " in line or " CRITICAL " in line:
                yield f"Synapse's log: {line}"
        code, said = Keeper(self.keeper).check()
        if code != 0:
            yield f"roomkeeper check, after Synapse: {said}"


    def beside(self):
        """A running Synapse moves the people out, because roomkeeper asks it to; the rows are roomkeeper's to delete."""
        home = self.template.copy(self.scratch / "removals-beside")
        accounts = self.template.manifest["accounts"]
        ann = accounts["ann"]
        gone = next(room for room, shape in self.rooms.items() if shape == "everyday-v10")
        blocked = next(room for room, shape in self.rooms.items() if shape == BLOCKED)
        # What everybody can read is refused (K-6).
        (home / "synapse.token").touch(0o600)
        (home / "synapse.token").write_text(self.template.admin_token)
        with Server(self.python, home) as server:
            configuration = json.loads((home / "homeserver.yaml").read_text())
            configuration["roomkeeper"] = {
                "stride": {"events": 20},
                "homeserver": {
                    "running": "beside", "url": f"http://127.0.0.1:{server.port}", "admin_token_path": str(home / "synapse.token"),
                },
            }
            (home / "keeper.yaml").write_text(json.dumps(configuration))
            hand = Keeper(home)
            hand.address = ["-c", "keeper.yaml"]
            done = hand.run("--json", "delete-room", gone, "--block", "--new-room-user", ann["user_id"], "--room-name", "N")
            try:
                job = json.loads(done.stdout)
            except ValueError:
                yield f"beside: {done.stdout}{done.stderr}"
                return
            told = job["progress"].get("shutdown_room") or {}
            if done.returncode != 0 or not told.get("kicked_users") or told.get("failed_to_kick_users") or not told.get("new_room_id"):
                yield f"beside: {done.stdout}{done.stderr}"
                return
            if hand.run("block", blocked).returncode != 0:
                yield "beside: a room could not be blocked"
            client = server.client(ann["access_token"])
            try:
                client.post(f"/_matrix/client/v3/join/{quote(gone)}", {})
                yield "beside: the deleted room was joined"
            except Refused:
                pass
            members = client.get(f"/_matrix/client/v3/rooms/{quote(told['new_room_id'])}/joined_members")["joined"]
            # The creator is there anyway; who was only invited is not joined.
            if not set(members) <= {*told["kicked_users"], ann["user_id"]}:
                yield f"beside: in the new room are {sorted(members)}, moved were {told['kicked_users']}"
            client.close()
        for table in ("rooms", "events", "state_groups", "room_memberships"):
            left = columns(home, f"SELECT count(*) FROM {table} WHERE room_id = '{gone}'")[0][0]
            if left:
                yield f"beside: {left} rows of {table} are left"
        blocks = {room for (room,) in columns(home, "SELECT room_id FROM blocked_rooms")}
        if not {gone, blocked} <= blocks:
            yield f"beside: blocked are {blocks}"
        code, said = Keeper(home).check()
        if code != 0:
            yield f"beside: roomkeeper check: {said}"
        with Server(self.python, home) as server:
            client = server.client(ann["access_token"])
            joined = client.get("/_matrix/client/v3/sync", timeout=0)["rooms"]["join"]
            if told["new_room_id"] not in joined or gone in joined:
                yield f"beside: after a restart ann is in {sorted(joined)}"
            client.close()


def troubles(template, scratch):
    return Removal(template, scratch).troubles()
