"""The deliberate differences: what roomkeeper does otherwise than its judge, and by which rule.

Each entry explains one kind of differing row.  It must say so from what is promised (the template, the plan, the
model), and where it can it looks whether the row is what the rule wants, so that an entry never covers a mistake.
An entry that explains nothing in a whole run is an entry that nobody needs: it fails the suite.
"""

import threading
from dataclasses import dataclass
from typing import Callable

# Where an event leaves rows under its id.  `event_to_state_groups` is not among them: both forget the group of every
# event that they select (P-12).
ROWS_OF_AN_EVENT = {
    "events", "event_json", "event_edges", "event_auth", "event_relations", "event_search", "redactions",
    "event_push_actions", "event_txn_id", "event_txn_id_device_id", "event_forward_extremities", "event_labels",
    "event_expiry", "rejections",
}


ROW, OUTCOME = "row", "outcome"


@dataclass
class Deviation:
    rule: str
    says: str
    explains: Callable
    # Only judges with this defect differ; None: all of them.
    defect: str | None = None
    # What it is about: a row that differs, or how a purge ended.
    of: str = ROW
    used: int = 0


class Deviations:
    """The list, and how often each entry was used."""

    def __init__(self):
        self.entries = [Deviation(**entry) for entry in _LIST]
        self._lock = threading.Lock()

    def explain(self, case, difference) -> bool:
        return self._explain(ROW, case, difference)

    def excuse(self, case, outcome) -> bool:
        return self._explain(OUTCOME, case, outcome)

    def _explain(self, of, case, what) -> bool:
        for entry in self.entries:
            if entry.of != of or entry.defect is not None and entry.defect not in case.release.defects:
                continue
            if entry.explains(case, what):
                # Releases are judged by several threads; a lost count of many does no harm, one of one would.
                with self._lock:
                    entry.used += 1
                return True
        return False

    def unused(self, releases) -> list[Deviation]:
        """Entries without use, those left out that no judge of this run could have brought about."""
        present = {defect for release in releases for defect in release.defects}
        return [entry for entry in self.entries if not entry.used and (entry.defect is None or entry.defect in present)]


_LIST = []


def deviation(rule, defect=None, of=ROW):
    def add(function):
        _LIST.append(dict(rule=rule, says=function.__doc__, explains=function, defect=defect, of=of))
        return function

    return add


def _unharmed(case, difference) -> bool:
    """A row that only roomkeeper still has, as it was in the template; the outlier flag apart."""
    if not difference.kept_by_keeper_only:
        return False
    row = dict(difference.keeper)
    if difference.table == "events":
        row["outlier"] = 0
    table = case.template.tables[difference.table]
    return tuple(row[column] for column in table.columns) in table.rows


def _kept_beyond_the_judge(case, event_id) -> bool:
    """An event that by our promise stays, as an outlier, and that the judge deletes."""
    kept = case.promised.events.get(event_id)
    return kept is not None and kept.outlier and event_id not in case.judged.events


@deviation("D", of=OUTCOME)
def judge_cannot_finish(case, outcome):
    """P-19: the judge's purge fails on a foreign key, ours does not fail."""
    return outcome.done and "FOREIGN KEY" in outcome.reason.upper()


@deviation("C", of=OUTCOME)
def judge_finds_no_event(case, outcome):
    """R-24: backfilled events lead the judge's search by time astray, and it finds nothing where there is something."""
    return outcome.done and "no event to be purged" in outcome.reason and outcome.purge.before_ts is not None


@deviation("T", of=OUTCOME)
def nothing_has_expired(case, outcome):
    """R-50: where no event has expired by its own time the room is left alone; the judge takes what lies below some event
    that arrived early, as what was backfilled seems to have."""
    ts = outcome.purge.before_ts
    return not outcome.done and ts is not None and case.promised.cut_before_ts(outcome.purge.room_id, ts) is None


@deviation("D")
def judge_stopped_by_foreign_keys(case, difference):
    """P-19: the newest arrival lies below the cut; the judge's purge fails on it, ours does the work (promises.py looks)."""
    return case.foreign_key_failure(case.room_of(difference))


@deviation("G", defect="G")
def local_events_stay(case, difference):
    """P-6: without `delete_local_events` local events stay; the judge does not know them by their modern ids."""
    event_id = difference.row.get("event_id")
    if difference.table not in ROWS_OF_AN_EVENT or not _kept_beyond_the_judge(case, event_id):
        return False
    return event_id in case.without_p21.events and _unharmed(case, difference)


@deviation("E")
def redactions_of_survivors_stay(case, difference):
    """P-21: a redaction whose target stays is kept as an outlier, or the target would be readable again."""
    event_id = difference.row.get("event_id")
    if difference.table not in ROWS_OF_AN_EVENT or not _kept_beyond_the_judge(case, event_id):
        return False
    target = case.promised.events[event_id].redacts
    return event_id not in case.without_p21.events and target in case.promised.events and _unharmed(case, difference)


def _otherwise_by(case, rule) -> set:
    """The events that meet another fate by our promise than they would without that rule."""
    if rule not in case.worked_out:
        without = {"T": case.without_r50, "P-51": case.without_p51}[rule]
        case.worked_out[rule] = {
            event_id for event_id in case.template.events if case.promised.fate_of(event_id) != without.fate_of(event_id)
        }
    return case.worked_out[rule]


def _is_as_promised(case, difference, event_id) -> bool:
    """Rows of an event that stays in the timeline are those of the template; of an outlier that the judge has deleted as
    well, the flag apart; of an event that goes there are none."""
    fate = case.promised.fate_of(event_id)
    if fate == "in the timeline":
        columns = case.template.tables[difference.table].columns
        kept = difference.keeper
        return kept is not None and tuple(kept[column] for column in columns) in case.template.tables[difference.table].rows
    if fate == "outlier" and difference.table in ("events", "event_to_state_groups"):
        return True
    return difference.kept_by_synapse_only or fate == "outlier" and _unharmed(case, difference)


def _row_by(case, difference, rule) -> bool:
    event_id = difference.row.get("event_id")
    if difference.table not in ROWS_OF_AN_EVENT | {"event_to_state_groups"} or event_id not in _otherwise_by(case, rule):
        return False
    return _is_as_promised(case, difference, event_id)


def _gap_by(case, difference, rule) -> bool:
    """A backward extremity that is one, or none, because the event or one that follows it meets another fate."""
    if difference.table != "event_backward_extremities" or difference.changed():
        return False
    event_id, otherwise = difference.row["event_id"], _otherwise_by(case, rule)
    edges = case.template.tables["event_edges"]
    child, parent = edges.columns.index("event_id"), edges.columns.index("prev_event_id")
    followers = {row[child] for row in edges.rows if row[parent] == event_id}
    is_gap = _points_at(case, event_id) and case.promised.fate_of(event_id) != "in the timeline"
    return is_gap == difference.kept_by_keeper_only and bool(otherwise & {event_id, *followers})


def _group_by(case, difference, rule) -> bool:
    """A state group of an event that meets another fate, or one that such a group rests on."""
    if difference.table not in ("state_groups", "state_groups_state", "state_group_edges"):
        return False
    if difference.changed():
        return False
    groups = case.keeper_groups if difference.kept_by_keeper_only else case.synapse_groups
    key = rule, difference.kept_by_keeper_only
    if key not in case.worked_out:
        events = _otherwise_by(case, rule) & groups.of_event.keys()
        case.worked_out[key] = {group for event in events for group in groups.path(groups.of_event[event])}
    return difference.row.get("id", difference.row.get("state_group")) in case.worked_out[key]


@deviation("T")
def what_has_not_expired_stays(case, difference):
    """R-50: by time, an event stays in the timeline that has not expired, and so does the newest that has; the judge takes
    what lies below the newest arrival."""
    return _row_by(case, difference, "T")


@deviation("T")
def gaps_lie_below_what_has_not_expired(case, difference):
    """R-50, P-9: the marks of gaps lie where the timeline ends, which is elsewhere."""
    return _gap_by(case, difference, "T")


@deviation("T")
def what_has_not_expired_keeps_its_state(case, difference):
    """R-50: with its state."""
    return _group_by(case, difference, "T")


def _counted_by(case, difference, rule) -> bool:
    """Counts of unread events that differ by no more than the events that meet another fate."""
    columns = {"notif_count": "notif", "unread_count": "unread"}
    if difference.table != "event_push_summary" or not difference.changed() or not difference.changed() <= columns.keys():
        return False
    for column in difference.changed():
        more = _waiting_by(case, rule, case.keeper_tables, case.synapse_tables, difference.row, columns[column])
        fewer = _waiting_by(case, rule, case.synapse_tables, case.keeper_tables, difference.row, columns[column])
        if not -fewer <= (difference.keeper[column] or 0) - (difference.synapse[column] or 0) <= more:
            return False
    return True


def _waiting_by(case, rule, tables, other, summary, kind) -> int:
    """How many events that only one of the results has, because of a rule, wait for the user of a row of summaries."""
    table, events = tables["event_push_actions"], other["events"]
    held = {row[events.columns.index("event_id")] for row in events.rows}
    waiting = (dict(zip(table.columns, row)) for row in table.rows)
    return sum(
        bool(row[kind]) and all(row[column] == summary[column] for column in ("user_id", "room_id", "thread_id"))
        and row["event_id"] in _otherwise_by(case, rule) and row["event_id"] not in held
        for row in waiting
    )


@deviation("T")
def what_has_not_expired_still_notifies(case, difference):
    """R-50, P-14: what stays is still counted as unread, what goes besides is not."""
    return _counted_by(case, difference, "T")


@deviation("P-51")
def extremities_still_notify(case, difference):
    """P-51, P-14: so it is with forward extremities."""
    return _counted_by(case, difference, "P-51")


@deviation("P-51")
def extremities_stay_beside(case, difference):
    """P-51: beside a Synapse that cannot be told, forward extremities stay in the timeline; the judge tells itself."""
    return _row_by(case, difference, "P-51")


@deviation("P-51")
def gaps_lie_below_extremities(case, difference):
    """P-51, P-9: what such an extremity follows is a gap."""
    return _gap_by(case, difference, "P-51")


@deviation("P-51")
def extremities_keep_their_state(case, difference):
    """P-51: with their state."""
    return _group_by(case, difference, "P-51")


@deviation("H", defect="H")
def an_empty_purge_changes_nothing(case, difference):
    """P-7: with nothing selected the judge still empties the backward extremities and sets min_depth to 0."""
    if difference.table not in ("event_backward_extremities", "room_depth"):
        return False
    # What ours has is recomputed by promises.py (gaps_are_marked, depth_is_right).
    return case.room_of(difference) in case.promised.empty_purges and not difference.kept_by_synapse_only


def _points_at(case, event_id) -> bool:
    """Whether a surviving non-outlier of roomkeeper's copy has `event_id` for a predecessor."""
    edges = case.keeper_tables["event_edges"]
    child, parent = edges.columns.index("event_id"), edges.columns.index("prev_event_id")
    for row in edges.rows:
        if row[parent] == event_id:
            event = case.keeper_events.get(row[child])
            if event is not None and not event.outlier:
                return True
    return False


@deviation("K")
def gaps_above_the_cut_stay_marked(case, difference):
    """P-10 a: a former backward extremity stays while a surviving event points at it; the judge drops it."""
    if difference.table != "event_backward_extremities" or not difference.kept_by_keeper_only:
        return False
    columns = case.template.tables[difference.table].columns
    before = tuple(difference.keeper[column] for column in columns) in case.template.tables[difference.table].rows
    return before and _points_at(case, difference.keeper["event_id"])


@deviation("K")
def outliers_make_no_gaps(case, difference):
    """P-10 b: what only outliers point at is no backward extremity; for the judge it is."""
    if difference.table != "event_backward_extremities" or not difference.kept_by_synapse_only:
        return False
    return not _points_at(case, difference.synapse["event_id"])


@deviation("K")
def depth_follows_the_gaps(case, difference):
    """P-11: `min_depth` is that of the events at the backward extremities, and ours has others (promises.py recomputes it)."""
    if difference.table != "room_depth" or difference.changed() != {"min_depth"}:
        return False
    return _extremities(case.synapse_tables, case.room_of(difference)) != _extremities(
        case.keeper_tables, case.room_of(difference)
    )


def _extremities(tables, room_id) -> set:
    table = tables["event_backward_extremities"]
    event, room = table.columns.index("event_id"), table.columns.index("room_id")
    return {row[event] for row in table.rows if row[room] == room_id}


@deviation("P-3")
def outliers_are_no_forward_extremities(case, difference):
    """P-3, I-4: a state event that became an outlier is no tip any more while another tip remains."""
    if difference.table != "event_forward_extremities" or not difference.kept_by_synapse_only:
        return False
    event = case.promised.events.get(difference.synapse["event_id"])
    return event is not None and event.outlier


@deviation("P-14", defect="P-14")
def unread_counts_follow(case, difference):
    """P-14: the judge deletes push actions without taking them off the counts."""
    if difference.table != "event_push_summary" or not difference.changed() <= {"notif_count", "unread_count"}:
        return False
    return all(0 <= (difference.keeper[column] or 0) <= (difference.synapse[column] or 0) for column in difference.changed())


@deviation("P-20")
def labels_and_expiries_go(case, difference):
    """P-20: the judge leaves labels and expiry dates of events that are gone."""
    if difference.table not in ("event_labels", "event_expiry") or not difference.kept_by_synapse_only:
        return False
    return difference.synapse["event_id"] not in case.promised.events


@deviation("P-20")
def threads_are_repaired(case, difference):
    """P-20: the judge leaves threads whose root or whose latest reply is gone."""
    if difference.table != "threads" or difference.synapse is None:
        return False
    return difference.keeper == expected_thread(case, difference.synapse["thread_id"])


def expected_thread(case, root) -> dict | None:
    """The row of `threads` that P-20 wants for this root: none without root or reply, else its newest surviving reply."""
    template = case.template.tables
    threads, relations = template["threads"], template["event_relations"]
    (row,) = [dict(zip(threads.columns, row)) for row in threads.rows if row[threads.columns.index("thread_id")] == root]
    surviving = case.promised.events
    named = [dict(zip(relations.columns, relation)) for relation in relations.rows]
    replies = [
        surviving[relation["event_id"]]
        for relation in named
        if relation["relates_to_id"] == root and relation["relation_type"] == "m.thread" and relation["event_id"] in surviving
    ]
    if root not in surviving or not replies:
        return None
    if row["latest_event_id"] in surviving:
        return row
    latest = max(replies, key=lambda event: (event.depth, event.stream_ordering))
    return {
        **row, "latest_event_id": latest.event_id, "topological_ordering": latest.depth,
        "stream_ordering": latest.stream_ordering,
    }


@deviation("P-30", defect="P-30")
def descendants_are_collected(case, difference):
    """P-30: unreferenced groups below a deleted one go as well; the judge only walks upwards."""
    if not difference.table.startswith("state_group") or not difference.kept_by_synapse_only:
        return False
    group = difference.synapse.get("id", difference.synapse.get("state_group"))
    return group in case.synapse_groups.unreferenced() and group not in case.keeper_groups.rooms


@deviation("J", defect="J")
def edges_of_deleted_groups_go(case, difference):
    """P-34: the judge leaves edges that name groups which are gone."""
    if difference.table != "state_group_edges" or not difference.kept_by_synapse_only:
        return False
    return difference.synapse["state_group"] not in case.synapse_groups.rooms
