"""What roomkeeper promises of its own result, whoever else purges: section 11 of behaviour.md, recomputed slowly.

This is also the judge of those rooms where Synapse's own purge fails (defect D).
"""

import sqlite3

import database
import rows
from plans import SPARED

# Rows of an event at or above the cut are as before (I-34), the places apart where rules speak of them.
UNTOUCHABLE = (
    "events", "event_json", "event_edges", "event_auth", "event_relations", "event_search", "redactions", "rejections",
    "event_push_actions", "event_to_state_groups", "state_events", "room_memberships", "current_state_events",
    "local_current_membership", "event_labels", "event_expiry", "event_txn_id", "event_txn_id_device_id",
)


def verify(case):
    """All promises; what is broken becomes a complaint of the case."""
    verify_rows(case)
    _verify(
        case,
        (
            database_is_sound, text_is_overwritten, file_is_whole, check_agrees, repetition_changes_nothing,
            reclaim_gives_all_back,
        ),
    )


def verify_rows(case):
    """Those that are told from the rows alone."""
    verify_purged_rows(case)
    _verify(case, (state_has_not_grown, spared_room_is_untouched))


def verify_purged_rows(case):
    """Of these, the ones that hold whichever rooms were purged, and by whom."""
    _verify(
        case,
        (
            schema_is_untouched, survivors_are_the_promised, surviving_rows_are_untouched, state_is_the_same,
            groups_are_collected, gaps_are_marked, depth_is_right, redactions_hold,
        ),
    )


def _verify(case, promises):
    for promise in promises:
        try:
            for broken in promise(case):
                case.complain(f"{promise.__name__}: {broken}")
        except Exception as error:  # a promise that cannot even be looked at is broken too
            case.complain(f"{promise.__name__}: {type(error).__name__}: {error}")


def database_is_sound(case):
    """I-18."""
    yield from database.of(case.keeper).flaws()


def schema_is_untouched(case):
    """Nothing of ours stays in Synapse's database: no table, no index."""
    for entry in database.of(case.keeper).schema() ^ case.template.database.schema():
        yield entry


def survivors_are_the_promised(case):
    """I-30 to I-33: exactly the events of the model, exactly its outliers."""
    promised, found = case.promised.events, case.keeper_events
    for event_id in promised.keys() - found.keys():
        yield f"{case.name_of(promised[event_id].room_id)}: {event_id} should have stayed"
    for event_id in found.keys() - promised.keys():
        yield f"{case.name_of(found[event_id].room_id)}: {event_id} should be gone"
    for event_id in promised.keys() & found.keys():
        if promised[event_id] != found[event_id]:
            yield f"{case.name_of(found[event_id].room_id)}: expected {promised[event_id]}, found {found[event_id]}"


def surviving_rows_are_untouched(case):
    """I-33 to I-35: every row of a surviving event is as it was; an outlier only has its flag changed and its group gone."""
    outliers = case.promised.outliered
    for name in UNTOUCHABLE:
        if name not in case.template.tables:
            continue
        before, after = case.template.tables[name], case.keeper_tables[name]
        column = before.columns.index("event_id")
        for row in (before.rows - after.rows) | (after.rows - before.rows):
            event_id = row[column]
            if event_id not in case.promised.events:
                if row in after.rows:
                    yield f"{name}: row of a deleted event {event_id}"
            elif event_id not in outliers or name not in ("events", "event_to_state_groups"):
                yield f"{name}: row of surviving {event_id} {'lost' if row in before.rows else 'new'}: {row}"


def state_is_the_same(case):
    """I-36: the full state of every event that has a group."""
    before, after = case.template.groups, case.keeper_groups
    for event_id, group in after.of_event.items():
        if after.resolve(group) != before.resolve(before.of_event[event_id]):
            yield f"state after {event_id} has changed (group {group})"


def state_has_not_grown(case):
    """Rows of state never become more than before, nor more than the judge leaves."""
    if case.plan.beside:
        return  # then Synapse itself deletes the groups, and writes out each child
    before, judged = case.template.groups.size_by_room(), case.synapse_groups.size_by_room() if case.synapse_groups else {}
    for room, size in case.keeper_groups.size_by_room().items():
        if size > before[room]:
            yield f"{case.name_of(room)}: {size} rows of state, {before[room]} before"
        # What stays by R-50 stays with its state.
        stays_longer = any(
            event.room_id == room and case.without_r50.fate_of(event_id) != "in the timeline"
            for event_id, event in case.promised.events.items() if not event.outlier
        )
        if case.synapse_groups and size > judged[room] and not stays_longer:
            yield f"{case.name_of(room)}: {size} rows of state, Synapse leaves {judged[room]}"


def groups_are_collected(case):
    """I-38: what no event uses is gone, unless it was unused before (and then it was nobody's candidate)."""
    lost = case.keeper_groups.unreferenced() - case.template.groups.unreferenced()
    if lost:
        yield f"unreferenced state groups stay: {sorted(lost)[:10]} ({len(lost)})"


def _edges(case):
    """Which surviving events point at an event."""
    table = case.keeper_tables["event_edges"]
    child, parent = table.columns.index("event_id"), table.columns.index("prev_event_id")
    children = {}
    for row in table.rows:
        event = case.keeper_events.get(row[child])
        if event is not None:
            children.setdefault(row[parent], []).append(event)
    return children


def _extremities(case, tables):
    table = tables["event_backward_extremities"]
    event, room = table.columns.index("event_id"), table.columns.index("room_id")
    found = {}
    for row in table.rows:
        found.setdefault(row[room], set()).add(row[event])
    return found


def gaps_are_marked(case):
    """I-37 by P-9 and P-10: what surviving events point at and what is no longer held, or was not held before."""
    children = _edges(case)
    before, after = _extremities(case, case.template.tables), _extremities(case, case.keeper_tables)
    for room in case.promised.cuts:
        pointed_at = {
            event_id
            for event_id, events in children.items()
            if any(event.room_id == room and not event.outlier for event in events)
        }
        held = {event.event_id for event in case.keeper_events.values() if event.room_id == room and not event.outlier}
        purged = case.template.events.keys() - held
        expected = pointed_at & (purged | before.get(room, set())) - held
        if expected != after.get(room, set()):
            surplus, missing = after.get(room, set()) - expected, expected - after.get(room, set())
            yield f"{case.name_of(room)}: backward extremities: too many {surplus}, missing {missing}"


def depth_is_right(case):
    """P-11."""
    children = _edges(case)
    table = case.keeper_tables["room_depth"]
    depths = {row[table.columns.index("room_id")]: row[table.columns.index("min_depth")] for row in table.rows}
    for room in case.promised.cuts.keys() - case.promised.empty_purges:
        extremities = _extremities(case, case.keeper_tables).get(room, set())
        expected = min((event.depth for extremity in extremities for event in children.get(extremity, [])), default=0)
        if depths.get(room) != expected:
            yield f"{case.name_of(room)}: min_depth {depths.get(room)}, expected {expected}"


def redactions_hold(case):
    """I-39: what was redacted and survives, is redacted still."""
    targets = {event.redacts for event in case.template.events.values() if event.redacts}
    after = {event.redacts for event in case.keeper_events.values() if event.redacts}
    for target in targets & case.keeper_events.keys() - after:
        yield f"{target} is redacted no more"


def spared_room_is_untouched(case):
    """I-40, for a room that no plan purges."""
    (room,) = [room for room, shape in case.shapes.items() if shape == SPARED]
    for difference in rows.differences(case.template.tables, case.keeper_tables):
        if difference.row.get("room_id") == room:
            yield difference


# SQLite's `secure_delete` overwrites what is deleted, not what it had copied to another page to balance a tree: of a
# thousand texts one or two stay in the slack of a page, with Synapse as with us.  Only `reclaim` removes these.
SLACK = 0.01


def text_is_overwritten(case):
    """What is deleted is overwritten: its text stands neither in the file nor in its write-ahead log, slack apart."""
    if not database.of(case.keeper).is_file:
        return  # deleted rows are in a server's files until it vacuums
    if not sqlite3.connect(":memory:").execute("PRAGMA secure_delete").fetchone()[0]:
        return  # this SQLite does not overwrite, so Synapse itself has left copies in the template's pages
    readable, deleted = _deleted_text(case)
    if len(readable) > max(3, SLACK * deleted):
        yield f"the text of {len(readable)} of {deleted} deleted events can still be read: {readable[:3]}"


def _deleted_text(case) -> tuple[list, int]:
    """Deleted bodies that stand in the files, and how many bodies were deleted."""
    if not database.of(case.keeper).is_file:
        return [], 0
    files = [path.read_bytes() for path in case.keeper.glob("homeserver.db*") if not path.name.endswith("-shm")]
    bodies = case.template.bodies
    table = case.keeper_tables["event_json"]
    stay = "\n".join(row[table.columns.index("json")] for row in table.rows)
    gone = {bodies[event_id] for event_id in bodies.keys() - case.promised.events.keys()}
    gone = {text for text in gone if text not in stay}
    return [text for text in sorted(gone) if any(text.encode() in file for file in files)], len(gone)


def reclaim_gives_all_back(case):
    """`reclaim` changes no row, leaves no deleted text, and the file is not larger than before."""
    kept = database.of(case.keeper)
    size = kept.path.stat().st_size if kept.is_file else 0
    done = case.hand.run("reclaim")
    if done.returncode != 0:
        yield f"exit {done.returncode}: {(done.stdout + done.stderr)[-500:]}"
    for difference in rows.differences(case.keeper_tables, rows.read_all(kept)):
        yield difference
    if readable := _deleted_text(case)[0]:
        yield f"can still be read: {readable[:5]}"
    if kept.is_file and kept.path.stat().st_size > size:
        yield f"{kept.path.stat().st_size} bytes, {size} before"
    yield from database_is_sound(case)


def file_is_whole(case):
    """The write-ahead log is emptied at the end of a job: whoever copies the one file of a stopped server has it all."""
    log = case.keeper / "homeserver.db-wal"
    if log.exists() and log.stat().st_size > 0:
        yield f"{log.stat().st_size} bytes are left in the write-ahead log"


def check_agrees(case):
    """`roomkeeper check` finds nothing, and a repair nothing to do."""
    yield from (f"a repair would mend {wrong}" for wrong in case.hand.mendable())
    code, said = case.hand.check()
    if code != 0:
        yield f"exit {code}: {said[-1500:]}"


def repetition_changes_nothing(case):
    """I-41: the last purge of each room once more; and a dry run does not write at all.

    Forward extremities that stayed beside a Synapse (P-51) go with this purge, now that it is stopped.
    """
    kept = database.of(case.keeper)
    last = {order.room_id: order for order in case.purges}
    before = kept.fingerprint()
    for order in last.values():
        case.hand.purge(order, dry_run=True)
    if kept.fingerprint() != before:
        yield "a dry run changed the database"
    for order in last.values():
        case.hand.purge(order)
    went = {
        event.room_id
        for event_id, event in case.template.events.items()
        if case.promised.fate_of(event_id) != case.without_p51.fate_of(event_id)
    }
    for difference in rows.differences(case.keeper_tables, rows.read_all(kept)):
        if case.room_of(difference) not in went:
            yield f"the second time: {difference}"
    if went:
        case.promised = case.without_p51
        case.read_keeper()
        yield from (f"the second time: {broken}" for broken in survivors_are_the_promised(case))
        yield from (f"the second time: {broken}" for broken in gaps_are_marked(case))
