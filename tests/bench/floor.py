"""The floor under a purge: the same rows removed by plain SQL, by sorted rowid, in one transaction or in strides.

    python floor.py leap|strides DATABASE ROOM CUT_DEPTH
"""

import json
import os
import sqlite3
import struct
import sys
import time

# behaviour.md P-12, P-13, P-15 (all by event); True: also for events that become outliers.
TABLES = [("event_to_state_groups", True), ("event_edges", False), ("events", False), ("event_json", False), ("event_auth", False),
          ("event_forward_extremities", False), ("event_relations", False), ("event_search", False), ("rejections", False),
          ("redactions", False), ("event_push_actions", False)]


# A stride beside a server holds the write lock for less than half a second: so many events on the machines at hand.
STRIDE = 2_500
LOG_AIM = 720 << 20


def log_bytes(database):
    """The file keeps its length when the log starts anew: so asks its index for the last frame."""
    with open(database + "-shm", "rb") as index:
        return struct.unpack("=16xI", index.read(20))[0] * 4096


def connect(database, *pragmas):
    db = sqlite3.connect(database, isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "temp_store = MEMORY", *pragmas):
        db.execute("PRAGMA " + pragma).fetchall()
    db.execute("CREATE TEMP TABLE doomed (event_id TEXT PRIMARY KEY, stream INTEGER NOT NULL, deleted INTEGER NOT NULL) WITHOUT ROWID")
    db.execute("CREATE TEMP TABLE gone (id INTEGER PRIMARY KEY)")
    return db


def select(db, room, lowest, below):
    db.execute("DELETE FROM doomed")
    db.execute("INSERT INTO doomed SELECT e.event_id, e.stream_ordering, s.event_id IS NULL FROM events e LEFT JOIN state_events s USING (event_id)"
               " WHERE e.room_id = ? AND e.topological_ordering >= ? AND e.topological_ordering < ? AND (NOT e.outlier OR s.event_id IS NULL) ORDER BY 1",
               (room, lowest, below))


def delete(db, room, documents):
    """Deletes by sorted rowid, in the order that behaviour.md gives."""
    for table, all_selected in TABLES:
        db.execute("DELETE FROM gone")
        which = "" if all_selected else " AND d.deleted"
        if table == "event_search":  # has no index on event_id: one look at its content
            db.execute("INSERT INTO gone SELECT c.docid FROM " + documents + " WHERE 1" + which, {"room": room})
        elif table == "events":
            db.execute("INSERT INTO gone SELECT stream FROM doomed WHERE deleted ORDER BY 1")
        elif table == "event_push_actions":
            db.execute("INSERT INTO gone SELECT t.rowid FROM event_push_actions t CROSS JOIN doomed d ON d.event_id = t.event_id WHERE t.room_id = ?" + which, (room,))
        else:
            db.execute(f"INSERT INTO gone SELECT t.rowid FROM doomed d CROSS JOIN {table} t ON t.event_id = d.event_id WHERE 1" + which + " ORDER BY 1")
        db.execute(f"DELETE FROM {table} WHERE rowid IN (SELECT id FROM gone)")
    db.execute("UPDATE events SET outlier = 1 WHERE stream_ordering IN (SELECT stream FROM doomed WHERE NOT deleted)")


def floor(database, room, cut_depth):
    """One transaction."""
    db = connect(database, "cache_size = -65536", "foreign_keys = ON", "secure_delete = ON")
    begun = time.monotonic()
    db.execute("BEGIN IMMEDIATE")
    select(db, room, -1 << 63, cut_depth)
    delete(db, room, "event_search_content c CROSS JOIN doomed d ON d.event_id = c.c0event_id AND c.c1room_id = :room")
    db.execute("COMMIT")
    longest = time.monotonic() - begun
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    db.close()
    return longest


def floor_in_strides(database, room, cut_depth):
    """Transactions of `STRIDE` events, as they must be beside a live server, and nothing but the deletes: foreign keys
    are not looked after, nothing is overwritten. The log is kept from being copied too often, as roomkeeper does."""
    db = connect(database, "cache_size = -114688", "foreign_keys = OFF", "secure_delete = FAST", "wal_autocheckpoint = 0")
    pin = sqlite3.connect(database, isolation_level=None)
    db.execute("CREATE TEMP TABLE documents (event_id TEXT PRIMARY KEY, docid INTEGER NOT NULL) WITHOUT ROWID")
    db.execute("INSERT INTO documents SELECT c0event_id, docid FROM event_search_content WHERE c1room_id = ? ORDER BY 1", (room,))
    lowest, longest = -1 << 63, 0
    while lowest < cut_depth:
        if not pin.in_transaction:
            pin.execute("BEGIN")
            pin.execute("SELECT 1 FROM sqlite_master").fetchall()
        next_depth = db.execute("SELECT topological_ordering FROM events WHERE room_id = ? AND topological_ordering >= ? AND topological_ordering < ? AND NOT outlier"
                                " ORDER BY topological_ordering, stream_ordering LIMIT 1 OFFSET ?", (room, lowest, cut_depth, STRIDE)).fetchone()
        below = max(next_depth[0], lowest + 1) if next_depth else cut_depth
        begun = time.monotonic()
        db.execute("BEGIN IMMEDIATE")
        select(db, room, lowest, below)
        delete(db, room, "documents c CROSS JOIN doomed d ON d.event_id = c.event_id")
        db.execute("COMMIT")
        longest, lowest = max(longest, time.monotonic() - begun), below
        if log_bytes(database) >= LOG_AIM or lowest == cut_depth:
            pin.execute("COMMIT")
            for mode in ("PASSIVE", "RESTART" if lowest < cut_depth else "TRUNCATE"):
                db.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
    pin.close()
    db.close()
    return longest


if __name__ == "__main__":
    way = {"leap": floor, "strides": floor_in_strides}[sys.argv[1]]
    print(json.dumps({"longest_transaction_ms": round(way(sys.argv[2], sys.argv[3], int(sys.argv[4])) * 1000)}))
