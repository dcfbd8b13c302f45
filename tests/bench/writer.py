"""Somebody else who uses the database: writes one row every 10 ms, and says how long it had to wait.

    python writer.py DATABASE ROOM
"""

import json
import sqlite3
import sys
import threading
import time


def writer(database, room):
    """One row every 10 ms until standard input closes, then a line with the longest wait."""
    db = sqlite3.connect(database, isolation_level=None, timeout=5)
    db.execute("PRAGMA synchronous = NORMAL")
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    waits, locked = [], 0
    print("ready", flush=True)
    while not stop.wait(0.01):
        begun = time.monotonic()
        try:
            db.execute("UPDATE room_depth SET min_depth = min_depth WHERE room_id = ?", (room,))
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            locked += 1
        waits.append(time.monotonic() - begun)
    waits.sort()
    print(json.dumps({"writes": len(waits), "locked": locked, "max": waits[-1], "p99": waits[int(len(waits) * 0.99)]}), flush=True)


if __name__ == "__main__":
    writer(sys.argv[1], sys.argv[2])
