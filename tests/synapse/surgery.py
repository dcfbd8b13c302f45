"""Two states of a database that only years of federation make, cut into a stopped template.

Both are states that Synapse itself leaves: an event that never arrived (a gap), and events that were backfilled
(negative stream orderings).  Events of the peer are used, which nothing else refers to.
"""

# Everything that Synapse stores of a plain remote message.
TABLES_OF_A_MESSAGE = (
    "event_edges", "event_auth", "event_json", "event_search", "event_to_state_groups", "event_push_actions",
    "event_relations", "event_labels", "stream_ordering_to_exterm", "events",
)


def make_gap(session, room_id, event_id):
    """As if `event_id` had never arrived: gone, and in its place a backward extremity (section 0, P-9, P-10)."""
    for table in TABLES_OF_A_MESSAGE:
        session.execute(f"DELETE FROM {table} WHERE event_id = ?", (event_id,))
    session.execute("INSERT INTO event_backward_extremities (event_id, room_id) VALUES (?, ?)", (event_id, room_id))


def make_backfilled(session, event_ids):
    """As if these, oldest first, had been fetched later: -1 is the newest of them, and nobody was notified."""
    for n, event_id in enumerate(reversed(event_ids), start=1):
        session.execute("DELETE FROM event_push_actions WHERE event_id = ?", (event_id,))
        session.execute("DELETE FROM stream_ordering_to_exterm WHERE event_id = ?", (event_id,))
        session.execute("UPDATE events SET stream_ordering = ? WHERE event_id = ?", (-n, event_id))
