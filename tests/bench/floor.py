"""The floor under a purge: the same rows removed by plain SQL, in one transaction, by sorted rowid.

    python floor.py DATABASE ROOM CUT_DEPTH
"""

import json
import sqlite3
import sys
import time

# behaviour.md P-12, P-13, P-15 (all by event); True: also for events that become outliers.
TABLES = [("event_to_state_groups", True), ("event_edges", False), ("events", False), ("event_json", False), ("event_auth", False),
          ("event_forward_extremities", False), ("event_relations", False), ("event_search", False), ("rejections", False),
          ("redactions", False), ("event_push_actions", False)]


def floor(database, room, cut_depth):
    """Deletes by sorted rowid, in the order that behaviour.md gives."""
    db = sqlite3.connect(database, isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "temp_store = MEMORY", "cache_size = -65536", "foreign_keys = ON", "secure_delete = ON"):
        db.execute("PRAGMA " + pragma).fetchall()
    begun = time.monotonic()
    db.execute("BEGIN IMMEDIATE")
    db.execute("CREATE TEMP TABLE doomed (event_id TEXT PRIMARY KEY, stream INTEGER NOT NULL, deleted INTEGER NOT NULL) WITHOUT ROWID")
    db.execute("INSERT INTO doomed SELECT e.event_id, e.stream_ordering, s.event_id IS NULL FROM events e LEFT JOIN state_events s USING (event_id)"
               " WHERE e.room_id = ? AND e.topological_ordering < ? AND (NOT e.outlier OR s.event_id IS NULL) ORDER BY 1", (room, cut_depth))
    db.execute("CREATE TEMP TABLE gone (id INTEGER PRIMARY KEY)")
    for table, all_selected in TABLES:
        db.execute("DELETE FROM gone")
        which = "" if all_selected else " AND d.deleted"
        if table == "event_search":  # has no index on event_id: one look at its content
            db.execute("INSERT INTO gone SELECT docid FROM event_search_content c CROSS JOIN doomed d ON d.event_id = c.c0event_id WHERE c.c1room_id = ?" + which, (room,))
        elif table == "events":
            db.execute("INSERT INTO gone SELECT stream FROM doomed WHERE deleted ORDER BY 1")
        elif table == "event_push_actions":
            db.execute("INSERT INTO gone SELECT t.rowid FROM event_push_actions t CROSS JOIN doomed d ON d.event_id = t.event_id WHERE t.room_id = ?" + which, (room,))
        else:
            db.execute(f"INSERT INTO gone SELECT t.rowid FROM doomed d CROSS JOIN {table} t ON t.event_id = d.event_id WHERE 1" + which + " ORDER BY 1")
        db.execute(f"DELETE FROM {table} WHERE rowid IN (SELECT id FROM gone)")
    db.execute("UPDATE events SET outlier = 1 WHERE stream_ordering IN (SELECT stream FROM doomed WHERE NOT deleted)")
    db.execute("COMMIT")
    longest = time.monotonic() - begun
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    db.close()
    print(json.dumps({"longest_transaction_ms": round(longest * 1000)}))


if __name__ == "__main__":
    floor(sys.argv[1], sys.argv[2], int(sys.argv[3]))
