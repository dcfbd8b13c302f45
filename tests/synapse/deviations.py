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
