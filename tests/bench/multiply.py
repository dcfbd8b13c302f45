"""Multiplies one room of a real, stopped Synapse server (SQLite) to N events, with true hashes, signatures and rows.

    python multiply.py --events 110000 [--base DIR] [--out DIR] [--prove]

Run it with the Python of a virtual environment that has `matrix-synapse` (for PyNaCl, and for Synapse itself with
`--prove` or when there is no base server yet). The new events are chained on the forward extremity of the room, in
the mixture of MIX; every table that Synapse writes for such events is written here too, and what Synapse's own
housekeeping would have thrown away by now (transaction ids after a day, extremity history after a month, rotated
push actions) is not. Results are cached under $ROOMKEEPER_BENCH_DIR by size.

Sizes are what the *room* has in the end; the cut in `bench.json` keeps its newest 10 %.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import sqlite3
import sys
import time
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections import deque
from pathlib import Path

from nacl.signing import SigningKey

import homeserver

DAY = 86_400_000
CENSOR_AFTER = 7 * DAY  # Synapse's redaction_retention_period
EXTREMITY_HISTORY = 31 * DAY
KEPT = 0.10  # the share of the room that the cut keeps
FULL_GROUP_AFTER = 100  # hops after which Synapse stores a state group in full
FORK_EVERY = 400  # now and then two events are sent at once, and the next one joins them
NOTIFIED = 100  # the newest events that still have a push action for every member
SEED = 20240229

# What is sent, in per mille; the rest are plain text messages.
MIX = {"reaction": 50, "thread": 40, "edit": 20, "image": 20, "reply": 15, "redaction": 10, "member": 6, "topic": 1}
HIGHLIGHT = '["notify",{"set_tweak":"highlight"},{"set_tweak":"sound","value":"default"}]'

TABLES = {
    "events": "stream_ordering topological_ordering event_id type room_id processed outlier depth origin_server_ts"
              " received_ts sender contains_url instance_name state_key",
    "event_json": "event_id room_id internal_metadata json format_version",
    "event_edges": "event_id prev_event_id is_state",
    "event_to_state_groups": "event_id state_group",
    "event_search": "event_id room_id key value",
    "event_relations": "event_id relates_to_id relation_type aggregation_key",
    "redactions": "event_id redacts have_censored received_ts recheck",
    "event_push_actions": "room_id event_id user_id actions topological_ordering stream_ordering notif highlight unread thread_id",
    "event_txn_id_device_id": "event_id room_id user_id device_id txn_id inserted_ts",
    "stream_ordering_to_exterm": "stream_ordering room_id event_id",
    "state_events": "event_id room_id type state_key",
    "event_auth": "event_id auth_id room_id",
    "event_auth_chains": "event_id chain_id sequence_number",
    "event_auth_chain_links": "origin_chain_id origin_sequence_number target_chain_id target_sequence_number",
    "state_groups": "id room_id event_id",
    "state_group_edges": "state_group prev_state_group",
    "state_groups_state": "state_group room_id type state_key event_id",
    "current_state_delta_stream": "stream_id room_id type state_key event_id prev_event_id instance_name",
    "room_memberships": "event_id user_id sender room_id membership display_name event_stream_ordering participant",
}

canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode
stored = json.JSONEncoder(separators=(",", ":")).encode


def unpadded(digest):
    return b64encode(digest).rstrip(b"=").decode()


def vocabulary(rng, size=30_000):
    """Words that nobody speaks, of 2 to 12 letters, some of them not ASCII; the first ones are used most (Zipf)."""
    plain = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    other = [c + v for c in ("sch", "ж", "ł", "ñ") for v in ("a", "ä", "é", "о")]
    words = set()
    while len(words) < size:
        words.add("".join(rng.choices(other if rng.random() < 0.04 else plain, k=rng.choice((1, 2, 2, 3, 3, 4)))))
    words = sorted(words)
    rng.shuffle(words)
    return words, list(itertools.accumulate(1 / (n + 3) for n in range(size)))


class Room:
    """The room as it is in the base server, and as it grows."""

    def __init__(self, db, room_id, server_name, key_line, rng):
        self.id, self.server_name, self.rng = room_id, server_name, rng
        _, version, seed = key_line.split()
        self.key_id = f"ed25519:{version}"
        self.key = SigningKey(b64decode(seed + "=" * (-len(seed) % 4)))
        self.version = one(db, "SELECT room_version FROM rooms WHERE room_id = ?", room_id)
        if not self.version.isdigit() or int(self.version) < 3:
            raise SystemExit(f"room version {self.version}: only 3 and newer can be multiplied")
        self.version = int(self.version)
        self.format = 2 if self.version == 3 else 3 if self.version < 12 else 4
        self.state = {(kind, key): event for kind, key, event in db.execute(
            "SELECT type, state_key, event_id FROM current_state_events WHERE room_id = ?", (room_id,))}
        self.members = {}
        for user, device in db.execute(
                "SELECT m.user_id, min(d.device_id) FROM local_current_membership m JOIN devices d ON d.user_id = m.user_id AND NOT d.hidden"
                " WHERE m.room_id = ? AND m.membership = 'join' GROUP BY 1 ORDER BY 1", (room_id,)):
            self.members[user] = device
        if not self.members:
            raise SystemExit("no local member with a device in the room")
        self.creator = one(db, "SELECT sender FROM events WHERE room_id = ? AND type = 'm.room.create'", room_id)
        self.extremities = list(db.execute(
            "SELECT x.event_id, e.depth, g.state_group FROM event_forward_extremities x JOIN events e USING (event_id)"
            " JOIN event_to_state_groups g USING (event_id) WHERE x.room_id = ?", (room_id,)))
        self.group = max(self.extremities, key=lambda row: row[1])[2]
        self.hops, at = 0, self.group
        while (at := one(db, "SELECT prev_state_group FROM state_group_edges WHERE state_group = ?", at)) is not None:
            self.hops += 1
        self.next_group = one(db, "SELECT max(id) + 1 FROM state_groups")
        self.load_chains(db)

    def load_chains(self, db):
        """Chain positions of the room's state, and for each state event how far its auth chain reaches in every chain."""
        self.next_chain = one(db, "SELECT max(chain_id) + 1 FROM event_auth_chains")
        self.chains = {event: (chain, number) for event, chain, number in db.execute(
            "SELECT event_id, chain_id, sequence_number FROM event_auth_chains JOIN events USING (event_id) WHERE room_id = ?", (self.id,))}
        self.chain_ends = {}
        for chain, number in self.chains.values():
            self.chain_ends[chain] = max(number, self.chain_ends.get(chain, 0))
        auth = {event: [] for event in self.chains}
        for event, other in db.execute("SELECT event_id, auth_id FROM event_auth WHERE room_id = ?", (self.id,)):
            auth.setdefault(event, []).append(other)
        self.reach = {}
        for (event,) in db.execute("SELECT event_id FROM events JOIN state_events USING (event_id) WHERE events.room_id = ?"
                                   " ORDER BY depth, stream_ordering", (self.id,)):
            self.reach[event] = self.reach_of(auth[event])

    def reach_of(self, auth):
        reach = {}
        for event in auth:
            for chain, number in itertools.chain([self.chains[event]], self.reach[event].items()):
                reach[chain] = max(number, reach.get(chain, 0))
        return reach

    def auth_events(self, sender, joining=False):
        keys = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", sender)]
        if joining:
            keys.append(("m.room.join_rules", ""))
        return [self.state[key] for key in keys if key in self.state]

    def chain(self, event_id, auth, previous):
        """The chain position and links of a new state event (behaviour.md, 6.4): (chain, number, links)."""
        chain, number = self.chains.get(previous, (None, 0)) if previous in auth else (None, 0)
        if chain is None or self.chain_ends[chain] != number:
            chain, number = self.next_chain, 0
            self.next_chain += 1
        number += 1
        links = []
        for other in auth:
            target, at = self.chains[other]
            implied = any(self.reach[third].get(target, 0) >= at for third in auth if third != other)
            if target != chain and not implied:
                links.append((target, at))
        self.chains[event_id], self.chain_ends[chain] = (chain, number), number
        self.reach[event_id] = self.reach_of(auth)
        return chain, number, links

    def event(self, kind, sender, content, kept, auth, prev, depth, ts, **more):
        """A signed event: (event id, the event, the event as it reads once redacted)."""
        if self.version >= 12:
            auth = [other for other in auth if other != self.state["m.room.create", ""]]
        event = {"auth_events": auth, "content": content, "depth": depth, "origin_server_ts": ts,
                 "prev_events": prev, "room_id": self.id, "sender": sender, "type": kind, **more}
        hashed = {"sha256": unpadded(hashlib.sha256(canonical(event).encode()).digest())}
        pruned = dict(event, content=kept, hashes=hashed)
        pruned.pop("redacts", None)
        text = canonical(pruned).encode()
        digest = hashlib.sha256(text).digest()
        event_id = "$" + (unpadded(digest) if self.version == 3 else urlsafe_b64encode(digest).rstrip(b"=").decode())
        rest = {"hashes": hashed, "signatures": {self.server_name: {self.key_id: unpadded(self.key.sign(text).signature)}},
                "unsigned": {"age_ts": ts}}
        event.update(rest)
        pruned.update(rest)
        return event_id, event, pruned


def one(db, sql, *values):
    row = db.execute(sql, values).fetchone()
    return None if row is None else row[0]


class Multiplier:
    """Sends events into the room until it is big enough."""

    def __init__(self, db, room, rng, now):
        self.db, self.room, self.rng, self.now = db, room, rng, now
        self.rows = {table: [] for table in TABLES}
        self.statements = {table: f"INSERT INTO {table} ({columns.replace(' ', ', ')}) VALUES ({', '.join('?' * len(columns.split()))})"
                           for table, columns in TABLES.items()}
        self.stream = one(db, "SELECT max(m) FROM (SELECT max(stream_ordering) m FROM events UNION SELECT max(stream_id) FROM current_state_delta_stream"
                              " UNION SELECT max(stream_id) FROM stream_positions WHERE stream_name = 'events')")
        self.words, self.weights = vocabulary(rng)
        self.recent = deque(maxlen=300)  # plain messages that may be answered: (event id, sender)
        self.doomed = {}  # number of an event -> the message which it redacts
        self.threads = {}
        self.users = list(room.members)
        self.silent = [user for user in self.users if user != room.creator] or self.users
        self.speakers = list(itertools.accumulate(1 / (n + 2) for n in range(len(self.users))))
        self.kinds = [kind for kind in MIX] + ["text"]
        self.kind_weights = list(itertools.accumulate([*MIX.values(), 1000 - sum(MIX.values())]))

    def body(self):
        return " ".join(self.rng.choices(self.words, cum_weights=self.weights, k=self.rng.randint(7, 26)))

    def write(self, table, *row):
        self.rows[table].append(row)

    def flush(self):
        for table, rows in self.rows.items():
            if rows:
                self.db.executemany(self.statements[table], rows)
                rows.clear()

    def send(self, number, last, prev, depth, ts):
        """Event `number` of `last`, on `prev`; answers its id."""
        room, rng = self.room, self.rng
        kind = rng.choices(self.kinds, cum_weights=self.kind_weights)[0]
        target = self.doomed.pop(number, None)
        if target:
            kind = "redaction"
        elif kind == "redaction" or number == last or (kind in ("reaction", "thread", "edit", "reply") and not self.recent):
            kind = "text"
        sender = rng.choices(self.users, cum_weights=self.speakers)[0]
        if kind in ("member", "topic"):
            return self.send_state(kind, prev, depth, ts)

        more, relation, thread, mentioned, searched = {}, None, "main", None, None
        type_ = "m.room.message"
        content = {"body": self.body(), "msgtype": "m.text"}
        if kind == "redaction":
            # A redaction by the sender itself, some events after the message.
            target, sender = target
            type_, content = "m.room.redaction", {"reason": "mistaken"}
            if room.version >= 11:
                content["redacts"] = target
            else:
                more["redacts"] = target
            self.write("redactions", None, target, int(ts < self.now - CENSOR_AFTER), ts, 0)
        elif kind == "reaction":
            relation = (rng.choice(self.recent)[0], "m.annotation", rng.choice("👍🎉❤😄👀"))
            type_ = "m.reaction"
            content = {"m.relates_to": {"event_id": relation[0], "key": relation[2], "rel_type": relation[1]}}
        elif kind == "thread":
            # Threads go on: half of the replies are to one of the newest roots.
            root = rng.choice(list(self.threads)[-5:]) if self.threads and rng.random() < 0.5 else rng.choice(self.recent)[0]
            relation, thread = (root, "m.thread", None), root
            content["m.relates_to"] = {"event_id": root, "rel_type": "m.thread"}
        elif kind == "edit":
            edited, sender = rng.choice(self.recent)
            relation = (edited, "m.replace", None)
            content = {"body": "* " + content["body"], "m.new_content": content, "msgtype": "m.text",
                       "m.relates_to": {"event_id": edited, "rel_type": "m.replace"}}
        elif kind == "reply":
            content["m.relates_to"] = {"m.in_reply_to": {"event_id": rng.choice(self.recent)[0]}}
        elif kind == "image":
            name = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=24))
            content = {"body": f"{name}.jpg", "info": {"h": 768, "mimetype": "image/jpeg", "size": 181_337, "w": 1024},
                       "msgtype": "m.image", "url": f"mxc://{room.server_name}/{name}"}
        if type_ == "m.room.message" and rng.random() < 0.02:
            mentioned = rng.choice(self.users)
            content["m.mentions"] = {"user_ids": [mentioned]}

        auth = room.auth_events(sender)
        kept = {"redacts": content["redacts"]} if type_ == "m.room.redaction" and room.version >= 11 else {}
        event_id, event, pruned = room.event(type_, sender, content, kept, auth, prev, depth, ts, **more)
        if kind == "redaction":
            self.rows["redactions"][-1] = (event_id, *self.rows["redactions"][-1][1:])
        self.stream += 1
        if kind == "text" and number + 60 < last and rng.random() < MIX["redaction"] / 1000:
            at = number + rng.randint(2, 50)
            if at not in self.doomed:
                self.doomed[at] = (event_id, sender)
                if ts < self.now - CENSOR_AFTER:
                    event = pruned
        elif kind == "text":
            self.recent.append((event_id, sender))
        searched = content.get("body")
        device, txn = room.members[sender], f"m{self.stream}.{ts}"
        self.write("events", self.stream, depth, event_id, type_, room.id, 1, 0, depth, ts, ts, sender, int("url" in content), "master", None)
        self.write("event_json", event_id, room.id, stored({"device_id": device, "txn_id": txn}), stored(event), room.format)
        self.after(event_id, prev, ts)
        if ts > self.now - DAY:
            self.write("event_txn_id_device_id", event_id, room.id, sender, device, txn, ts)
        if searched:
            self.write("event_search", event_id, room.id, "content.body", searched)
        if relation:
            self.write("event_relations", event_id, *relation)
        if kind == "thread":
            self.threads.pop(thread, None)
            self.threads[thread] = (event_id, depth, self.stream)
        if mentioned and mentioned != sender:
            self.write("event_push_actions", room.id, event_id, mentioned, HIGHLIGHT, depth, self.stream, 1, 1, 0, thread)
        if last - number < NOTIFIED and kind != "redaction":
            for user in self.users:
                if user not in (sender, mentioned):
                    self.write("event_push_actions", room.id, event_id, user, "", depth, self.stream, 1, 0, 0, thread)
        self.bump = self.stream
        return event_id

    def send_state(self, kind, prev, depth, ts):
        room, rng = self.room, self.rng
        if kind == "topic":
            sender, type_, key, content, kept = room.creator, "m.room.topic", "", {"topic": self.body()}, {}
        else:
            sender = key = rng.choice(self.silent)
            type_, content, kept = "m.room.member", {"displayname": self.body()[:24].strip(), "membership": "join"}, {"membership": "join"}
        previous = room.state[type_, key] if (type_, key) in room.state else None
        auth = room.auth_events(sender, joining=kind == "member")
        event_id, event, _ = room.event(type_, sender, content, kept, auth, prev, depth, ts, state_key=key)
        if previous:
            event["unsigned"]["replaces_state"] = previous
        self.stream += 1
        self.write("events", self.stream, depth, event_id, type_, room.id, 1, 0, depth, ts, ts, sender, 0, "master", key)
        self.write("event_json", event_id, room.id, stored({"device_id": room.members[sender]}), stored(event), room.format)
        self.write("state_events", event_id, room.id, type_, key)
        for other in auth:
            self.write("event_auth", event_id, other, room.id)
        chain, at, links = room.chain(event_id, auth, previous)
        self.write("event_auth_chains", event_id, chain, at)
        for link in links:
            self.write("event_auth_chain_links", chain, at, *link)
        room.state[type_, key] = event_id
        group, room.next_group = room.next_group, room.next_group + 1
        self.write("state_groups", group, room.id, event_id)
        if room.hops < FULL_GROUP_AFTER:
            self.write("state_group_edges", group, room.group)
            self.write("state_groups_state", group, room.id, type_, key, event_id)
            room.hops += 1
        else:
            for (t, k), e in room.state.items():
                self.write("state_groups_state", group, room.id, t, k, e)
            room.hops = 0
        room.group = group
        self.write("current_state_delta_stream", self.stream, room.id, type_, key, event_id, previous, "master")
        if kind == "member":
            self.write("room_memberships", event_id, key, sender, room.id, "join", content["displayname"], self.stream, 1)
        else:
            self.write("event_search", event_id, room.id, "content.topic", content["topic"])
        self.after(event_id, prev, ts)
        return event_id

    def after(self, event_id, prev, ts):
        for other in prev:
            self.write("event_edges", event_id, other, 0)
        self.write("event_to_state_groups", event_id, self.room.group)
        if ts > self.now - EXTREMITY_HISTORY:
            for extremity in [event_id, *self.beside]:
                self.write("stream_ordering_to_exterm", self.stream, self.room.id, extremity)

    def run(self, count, start):
        """Sends `count` events with times from `start` to now."""
        prev = [event for event, _, _ in self.room.extremities]
        depth = max(depth for _, depth, _ in self.room.extremities) + 1
        step = (self.now - start) / (count + 1)
        fork = None
        for number in range(1, count + 1):
            ts = int(start + step * number + self.rng.random() * step)
            if fork:  # the second of two events sent at once
                self.beside = [fork]
                prev, fork = [fork, self.send(number, count, prev, depth, ts)], None
                depth += 1
            else:
                self.beside = []
                event_id = self.send(number, count, prev, depth, ts)
                # Not around state: two sides with different state would need state resolution.
                if number % FORK_EVERY == 0 and number + 2 < count and len(prev) == 1 and not self.rows["state_events"]:
                    fork = event_id
                else:
                    prev, depth = [event_id], depth + 1
            if fork is None and number % 250 == 0:
                self.flush()
                if number % 50_000 == 0:
                    print(f"  {number} of {count} events, {time.process_time():.0f} s of CPU", file=sys.stderr, flush=True)
        self.flush()
        return prev, depth - 1, ts

    def close(self, prev, ts):
        """What is kept once per room or per server: extremities, current state, memberships, positions of streams."""
        db, room = self.db, self.room
        db.execute("DELETE FROM event_forward_extremities WHERE room_id = ?", (room.id,))
        db.executemany("INSERT INTO event_forward_extremities (event_id, room_id) VALUES (?, ?)", [(event, room.id) for event in prev])
        for (kind, key), event in room.state.items():
            stream = one(db, "SELECT stream_ordering FROM events WHERE event_id = ?", event)
            db.execute("DELETE FROM current_state_events WHERE room_id = ? AND type = ? AND state_key = ?", (room.id, kind, key))
            db.execute("INSERT INTO current_state_events (event_id, room_id, type, state_key, membership, event_stream_ordering)"
                       " VALUES (?, ?, ?, ?, (SELECT membership FROM room_memberships WHERE event_id = ?), ?)", (event, room.id, kind, key, event, stream))
            if kind == "m.room.member":
                db.execute("UPDATE local_current_membership SET event_id = ?, event_stream_ordering = ? WHERE room_id = ? AND user_id = ?",
                           (event, stream, room.id, key))
                db.execute("UPDATE sliding_sync_membership_snapshots SET membership_event_id = ?, event_stream_ordering = ?"
                           " WHERE room_id = ? AND user_id = ?", (event, stream, room.id, key))
            if kind == "m.room.topic":
                topic = json.loads(one(db, "SELECT json FROM event_json WHERE event_id = ?", event))["content"].get("topic")
                db.execute("UPDATE room_stats_state SET topic = ? WHERE room_id = ?", (topic, room.id))
        db.execute("UPDATE room_stats_current SET completed_delta_stream_id ="
                   " (SELECT max(stream_id) FROM current_state_delta_stream WHERE room_id = ?1) WHERE room_id = ?1", (room.id,))
        db.execute("UPDATE sliding_sync_joined_rooms SET event_stream_ordering = ?, bump_stamp = ? WHERE room_id = ?", (self.stream, self.bump, room.id))
        db.executemany("INSERT OR REPLACE INTO threads (room_id, thread_id, latest_event_id, topological_ordering, stream_ordering) VALUES (?, ?, ?, ?, ?)",
                       [(room.id, root, *row) for root, row in self.threads.items()])
        db.execute("DELETE FROM stream_ordering_to_exterm WHERE stream_ordering < (SELECT min(stream_ordering) FROM events WHERE room_id = ? AND received_ts > ?)",
                   (room.id, self.now - EXTREMITY_HISTORY))
        db.execute("DELETE FROM event_txn_id_device_id WHERE inserted_ts < ?", (self.now - DAY,))

        # Push actions have been counted up to now, and forgotten after a day unless they highlight.
        day_ago = one(db, "SELECT min(stream_ordering) FROM events WHERE room_id = ? AND received_ts > ?", room.id, self.now - DAY) or self.stream
        newest = self.stream - NOTIFIED
        db.execute("DELETE FROM event_push_actions WHERE highlight = 0 AND stream_ordering < ?", (min(day_ago, newest),))
        db.execute("DELETE FROM event_push_summary")
        db.execute("INSERT INTO event_push_summary (user_id, room_id, notif_count, stream_ordering, unread_count, last_receipt_stream_ordering, thread_id)"
                   " SELECT user_id, room_id, sum(notif), ?, sum(unread), NULL, thread_id FROM event_push_actions GROUP BY user_id, room_id, thread_id",
                   (self.stream,))
        for table, column in (("event_push_summary_stream_ordering", "stream_ordering"), ("stats_incremental_position", "stream_id"),
                              ("user_directory_stream_pos", "stream_id"), ("room_forgetter_stream_pos", "stream_id"),
                              ("delayed_events_stream_pos", "stream_id"), ("appservice_stream_position", "stream_ordering")):
            if one(db, "SELECT 1 FROM sqlite_master WHERE name = ?", table):
                db.execute(f"UPDATE {table} SET {column} = ? WHERE {column} IS NOT NULL", (self.stream,))
        db.execute("UPDATE federation_stream_position SET stream_id = ? WHERE type = 'events'", (self.stream,))
        db.execute("UPDATE stream_positions SET stream_id = ? WHERE stream_name = 'events'", (self.stream,))


def multiply(base, out, events, room_id=None, token=None):
    known = json.loads((base / "base.json").read_text()) if (base / "base.json").exists() else {}
    server = homeserver.Homeserver(base)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in ["homeserver.yaml", "homeserver.db", server.signing_key_path().name]:
        shutil.copy2(base / file, out / file)
    rng = random.Random(SEED)
    db = sqlite3.connect(out / "homeserver.db", isolation_level=None)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000", "temp_store = MEMORY", "foreign_keys = OFF", "locking_mode = EXCLUSIVE"):
        db.execute("PRAGMA " + pragma).fetchall()
    if one(db, "SELECT count(*) FROM background_updates"):
        raise SystemExit("the base server has background updates to finish: let it run first")
    room_id = room_id or known.get("room_id") or one(db, "SELECT room_id FROM events GROUP BY 1 ORDER BY count(*) DESC LIMIT 1")
    token = token or known.get("admin_token") or one(
        db, "SELECT t.token FROM access_tokens t JOIN users u ON u.name = t.user_id WHERE u.admin = 1 AND t.puppets_user_id IS NULL LIMIT 1")
    server_name = server.server_name()
    room = Room(db, room_id, server_name, server.signing_key_path().read_text(), rng)
    have = one(db, "SELECT count(*) FROM events WHERE room_id = ? AND NOT outlier", room_id)
    if events <= have:
        raise SystemExit(f"the room has {have} events already")
    now = int(time.time() * 1000) - 60_000
    db.execute("BEGIN")
    work = Multiplier(db, room, rng, now)
    prev, depth, ts = work.run(events - have, one(db, "SELECT max(origin_server_ts) FROM events"))
    work.close(prev, ts)
    db.execute("COMMIT")
    cut, cut_depth = db.execute("SELECT event_id, topological_ordering FROM events WHERE room_id = ? AND NOT outlier"
                                " ORDER BY topological_ordering DESC, stream_ordering DESC LIMIT 1 OFFSET ?", (room_id, int(events * KEPT) - 1)).fetchone()
    below, state = db.execute("SELECT count(*), count(s.event_id) FROM events e LEFT JOIN state_events s USING (event_id)"
                              " WHERE e.room_id = ? AND NOT outlier AND topological_ordering < ?", (room_id, cut_depth)).fetchone()
    # Somebody who may speak in the room, and in another one.
    member_of = ("SELECT c.room_id, t.token FROM events c JOIN local_current_membership m ON m.room_id = c.room_id AND m.user_id = c.sender AND m.membership = 'join'"
                 " JOIN access_tokens t ON t.user_id = m.user_id WHERE c.type = 'm.room.create' AND c.room_id {} ? ORDER BY c.stream_ordering LIMIT 1")
    _, member_token = db.execute(member_of.format("="), (room_id,)).fetchone()
    other, other_token = db.execute(member_of.format("<>"), (room_id,)).fetchone()
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.close()
    (out / "bench.json").write_text(json.dumps({
        "server_name": server_name, "room_id": room_id, "admin_token": token, "events": events, "newest_event_id": prev[0],
        "cut_event_id": cut, "cut_depth": cut_depth, "events_below_cut": below, "state_events_below_cut": state,
        "member_token": member_token,
        "other_room_id": other, "other_room_token": other_token, "seed": SEED}, indent=1) + "\n")


def prove(out, python=sys.executable):
    """Shows on a copy that what was made is true: hashes and signatures by sample, SQLite's checks, and Synapse itself."""
    from signedjson.key import decode_verify_key_bytes
    from signedjson.sign import verify_signed_json
    from synapse.api.room_versions import KNOWN_ROOM_VERSIONS
    from synapse.crypto.event_signing import check_event_content_hash
    from synapse.events import make_event_from_dict
    from synapse.events.utils import prune_event

    about = json.loads((out / "bench.json").read_text())
    copy = out.with_name(out.name + ".prove")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(out, copy)
    try:
        db = sqlite3.connect(copy / "homeserver.db")
        version = KNOWN_ROOM_VERSIONS[one(db, "SELECT room_version FROM rooms WHERE room_id = ?", about["room_id"])]
        _, key_version, seed = homeserver.Homeserver(copy).signing_key_path().read_text().split()
        key = SigningKey(b64decode(seed + "=" * (-len(seed) % 4)))
        verify = decode_verify_key_bytes(f"ed25519:{key_version}", bytes(key.verify_key))
        sample = 0
        rows = db.execute("SELECT event_id, json FROM event_json WHERE room_id = ? AND (rowid % 97 = 0 OR event_id IN (SELECT event_id FROM state_events))",
                          (about["room_id"],))
        for event_id, text in rows:
            event = make_event_from_dict(json.loads(text), version)
            assert event.event_id == event_id, event_id
            verify_signed_json(prune_event(event).get_pdu_json(), about["server_name"], verify)
            if event.content:
                assert check_event_content_hash(event), event_id
            sample += 1
        print(f"  {sample} events have true ids, content hashes and signatures")
        assert db.execute("PRAGMA foreign_key_check").fetchall() == [], "foreign keys"
        assert one(db, "PRAGMA quick_check") == "ok", "quick_check"
        db.execute("INSERT INTO event_search (event_search) VALUES ('integrity-check')")
        print("  foreign_key_check, quick_check and the full-text integrity-check are clean")
        db.rollback()
        db.execute("ANALYZE")  # without it Synapse's paging is slow (measurements.md)
        db.commit()
        db.close()
        room, token = homeserver.quote(about["room_id"]), about["member_token"]
        with homeserver.Homeserver(copy, python) as hs:
            print("  Synapse starts")
            seen, at = 0, ""
            for _ in range(3):
                page = hs.call("GET", f"/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=100{at}", token=token)
                seen, at = seen + len(page["chunk"]), "&from=" + page["end"]
            assert seen == 300, seen
            context = hs.call("GET", f"/_matrix/client/v3/rooms/{room}/context/{homeserver.quote(about['cut_event_id'])}?limit=20", token=token)
            assert context["event"]["event_id"] == about["cut_event_id"] and len(context["events_before"]) == 10
            sent = hs.call("PUT", f"/_matrix/client/v3/rooms/{room}/send/m.room.message/prove", {"msgtype": "m.text", "body": "it lives"}, token)
            state = hs.call("PUT", f"/_matrix/client/v3/rooms/{room}/state/m.room.topic", {"topic": "it lives"}, token)
            page = hs.call("GET", f"/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=10", token=token)
            assert [e["event_id"] for e in page["chunk"]][:2] == [state["event_id"], sent["event_id"]]
            print(f"  Synapse pages ({seen} events), finds the cut, takes a message and a topic")
        log = (copy / "homeserver.log").read_text()
        bad = [line for line in log.splitlines() if re.search(r" (ERROR|CRITICAL) ", line)]
        assert not bad, bad[:3]
        print("  and logs no error")
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def ensure(events, cache, base=None, out=None, room=None, token=None, again=False):
    """The server with a room of `events` events: the cached one, or a new one. Answers its directory."""
    base, out = base or cache / "base", out or cache / name_of(events)
    if not (base / "homeserver.db").exists():
        print("making a base server", file=sys.stderr)
        homeserver.make_server(base)
    if again or not (out / "bench.json").exists():
        print(f"multiplying a room to {events} events (seed {SEED})", file=sys.stderr)
        multiply(base, out, events, room, token)
    return out


def name_of(events):
    """11,000 events are called 10k, because about 10 thousand of them go."""
    return {11_000: "10k", 110_000: "100k", 1_100_000: "1m"}.get(events, str(events))


def main():
    cache = os.environ.get("ROOMKEEPER_BENCH_DIR")
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--events", type=int, required=True, help="events of the room in the end")
    parser.add_argument("--base", type=Path, help="directory of the stopped server; made over Synapse's HTTP API when missing")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--room", help="the room to multiply (default: the biggest)")
    parser.add_argument("--token", help="an admin's access token (default: the first in the database)")
    parser.add_argument("--again", action="store_true", help="make it even if it is there")
    parser.add_argument("--prove", action="store_true", help="show, on a copy, that Synapse accepts the result")
    args = parser.parse_args()
    if not cache and not (args.base and args.out):
        parser.error("set ROOMKEEPER_BENCH_DIR, or give --base and --out")
    out = ensure(args.events, Path(cache) if cache else None, args.base, args.out, args.room, args.token, args.again)
    print(f"{out}: {(out / 'homeserver.db').stat().st_size / args.events:.0f} bytes per event")
    if args.prove:
        prove(out)


if __name__ == "__main__":
    main()
