"""Whether the oracle would notice: roomkeeper's result is damaged in small ways, each of which must be found.

A comparison that is never seen to fail proves nothing.
"""

import copy

import database
import promises

# Each is what a purge with one mistake in it would leave.  `:kept` is an event of the big room above the cut,
# `:outlier` a state event below it, `:room` the room.
DAMAGES = {
    "one event too many deleted": "DELETE FROM events WHERE event_id = :kept",
    "its JSON forgotten": "DELETE FROM event_json WHERE event_id = :kept",
    "an event above the cut became an outlier": "UPDATE events SET outlier = TRUE WHERE event_id = :kept",
    "a state event stayed in the timeline": "UPDATE events SET outlier = FALSE WHERE event_id = :outlier",
    "an outlier kept its state group": (
        "INSERT INTO event_to_state_groups (event_id, state_group)"
        " SELECT :outlier, state_group FROM event_to_state_groups WHERE event_id = :kept"
    ),
    "an edge lost": "DELETE FROM event_edges WHERE event_id = :kept",
    "the full-text row of a kept event lost": "DELETE FROM event_search WHERE event_id = :kept",
    "a full-text row left behind": (
        "INSERT INTO event_search (event_id, room_id, sender, key, value)"
        " VALUES ('$gone', :room, '@ann:oracle.test', 'content.body', 'gone')"
    ),
    "the gap not marked": "DELETE FROM event_backward_extremities WHERE room_id = :room",
    "the depth not raised": "UPDATE room_depth SET min_depth = 1 WHERE room_id = :room",
    "a tip lost": "DELETE FROM event_forward_extremities WHERE room_id = :room",
    "an unread count off by one": (
        "UPDATE event_push_summary SET notif_count = notif_count + 1 WHERE room_id = :room AND user_id = '@bob:oracle.test'"
    ),
    "a push action lost": "DELETE FROM event_push_actions WHERE event_id = :kept",
    "a relation lost": "DELETE FROM event_relations WHERE relates_to_id IN (SELECT event_id FROM events WHERE room_id = :room)",
    "a receipt lost": "DELETE FROM receipts_linearized WHERE room_id <> :room",
    "state changed": (
        "UPDATE state_groups_state SET event_id = '$other' WHERE room_id = :room AND type = 'm.room.topic'"
    ),
    "a group lost": "DELETE FROM state_groups WHERE id = (SELECT state_group FROM event_to_state_groups WHERE event_id = :kept)",
    "an unused group left": "INSERT INTO state_groups (id, room_id, event_id) VALUES (999999, :room, '$gone')",
    "state written twice over": (
        "INSERT INTO state_groups_state (state_group, room_id, type, state_key, event_id)"
        " SELECT state_group, room_id, type, state_key || ' ', event_id FROM state_groups_state WHERE room_id = :room"
    ),
    "membership changed": "UPDATE room_memberships SET forgotten = 1 WHERE room_id = :room",
    "another room touched": "DELETE FROM event_relations WHERE event_id IN (SELECT event_id FROM events WHERE room_id = :spared)",
    "a table left behind": "CREATE TABLE events_to_purge (event_id TEXT)",
}


def unnoticed(case, deviations):
    """The damages that neither the comparison nor the promises complain of."""
    sound = case.keeper
    names = _names(case)
    for what, sql in DAMAGES.items():
        damaged = copy.copy(case)
        damaged.problems = []
        damaged.keeper = sound.with_name("damaged")
        database.copy(sound, damaged.keeper)
        harmed = database.of(damaged.keeper)
        if not harmed.is_file:
            sql = sql.replace("key, value)", "key, vector)")  # there the full-text index keeps no text
        with harmed.damaging_session() as session:
            changed = session.execute(sql, {key: value for key, value in names.items() if f":{key}" in sql}).rowcount
        if changed == 0:
            yield f"{what}: the damage did nothing"
            continue
        damaged.read_keeper()
        damaged.compare_rows(deviations)
        by_rows = bool(damaged.problems)
        damaged.problems = []
        promises.verify_rows(damaged)
        if not by_rows and not damaged.problems:
            yield f"{what}: nobody noticed"


def _names(case) -> dict:
    shapes = {shape: room for room, shape in case.shapes.items()}
    room = shapes["big"]
    ours = [event for event in case.keeper_events.values() if event.room_id == room]
    pushed = case.keeper_tables["event_push_actions"]
    column = pushed.columns.index("event_id")
    notified = {row[column] for row in pushed.rows}
    # A reply to nothing, whose absence only its own rows tell of.
    kept = next(event for event in ours if not event.outlier and not event.is_state and event.event_id in notified)
    outlier = next(event for event in ours if event.outlier and event.is_state)
    return {"room": room, "spared": shapes["untouched"], "kept": kept.event_id, "outlier": outlier.event_id}
