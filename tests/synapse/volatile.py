"""What Synapse changes by merely running: no purge, so not compared.

A control copy, on which the same Synapse only starts and stops, must differ from its template in nothing else.
"""

ANY = None

VOLATILE = (
    # table, columns (or any row at all), why
    ("user_ips", ANY, "written when a token is used"),
    ("user_daily_visits", ANY, "counted by the day"),
    ("access_tokens", {"used"}, "set when a token is first used"),
    ("devices", {"last_seen", "ip", "user_agent"}, "written when a token is used"),
    ("scheduled_tasks", ANY, "Synapse's own jobs; ours are in the ledger (S-20)"),
    ("destinations", ANY, "whom Synapse tried to reach for backfill, when it was paged"),
    ("room_forgetter_stream_pos", ANY, "how far a chore has read"),
    ("sqlite_sequence", ANY, "a counter of rows that came and went"),
    ("cache_invalidation_stream_by_instance", ANY, "what a process on PostgreSQL tells others to forget (W-30)"),
)


def is_volatile(difference) -> bool:
    changed = difference.changed()
    for table, columns, _ in VOLATILE:
        if table == difference.table:
            return columns is ANY or bool(changed) and changed <= columns
    return False
