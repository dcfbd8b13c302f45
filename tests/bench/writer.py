"""Somebody else who uses the database: writes one row every 10 ms, and says how long it had to wait.

    python writer.py DATABASE ROOM
"""

import json
import sqlite3
import sys
import threading
import time


def writer(database, room):
    """Changes one row every 10 ms until standard input closes, puts it back, and prints a line with the longest wait."""
    db = sqlite3.connect(database, isolation_level=None, timeout=5)
    db.execute("PRAGMA synchronous = NORMAL")
    (was,) = db.execute("SELECT min_depth FROM room_depth WHERE room_id = ?", (room,)).fetchone()
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    waits, locked, turn = [], 0, 0
    print("ready", flush=True)
    while True:
        # The last turn puts the row back. A row that does not change would not be written at all.
        last = stop.wait(0.01)
        turn += 1
        begun = time.monotonic()
        try:
            db.execute("UPDATE room_depth SET min_depth = ? WHERE room_id = ?", (was if last else was + turn % 2, room))
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            locked += 1
        waits.append(time.monotonic() - begun)
        if last:
            break
    waits.sort()
    print(json.dumps({"writes": len(waits), "locked": locked, "max": waits[-1], "p99": waits[int(len(waits) * 0.99)]}), flush=True)


if __name__ == "__main__":
    writer(sys.argv[1], sys.argv[2])
