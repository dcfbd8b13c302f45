"""What a purge promises, in a few slow lines: the events it deletes and the events it turns into outliers.

The same model with two sets of rules tells what the judge should do, its known defects included, and what roomkeeper
should do.  Deliberate differences are explained by the distance of the two, never by looking at what came out.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Event:
    event_id: str
    room_id: str
    sender: str
    depth: int
    stream_ordering: int
    received_ts: int
    is_state: bool
    outlier: bool
    rejected: bool
    # What this event redacts, if it is a redaction.
    redacts: str | None
    origin_server_ts: int = 0

    def has_expired(self, ts: int) -> bool:
        """R-50: received before that time; of what was backfilled it is enough that it was sent before it."""
        return self.received_ts < ts or (self.stream_ordering < 0 and self.origin_server_ts < ts)


def read_events(database) -> dict[str, Event]:
    session = database.session()
    rows = session.execute(
        "SELECT e.event_id, e.room_id, e.sender, e.topological_ordering, e.stream_ordering, e.received_ts,"
        " EXISTS (SELECT 1 FROM state_events s WHERE s.event_id = e.event_id), e.outlier,"
        " EXISTS (SELECT 1 FROM rejections j WHERE j.event_id = e.event_id),"
        " (SELECT redacts FROM redactions r WHERE r.event_id = e.event_id), e.origin_server_ts FROM events e"
    )
    events = {row[0]: Event(*row[:6], *map(bool, row[6:9]), *row[9:]) for row in rows}
    session.close()
    return events


@dataclass(frozen=True)
class Rules:
    server_name: str
    # Defect G: locality was once read off the event id, which has no server name in modern rooms.
    local_by_event_id: bool = False
    # Defect E: a redaction goes although what it redacts stays.
    forgets_redactions: bool = False
    # Defect T: by time, what lies below the newest arrival goes, also what has not expired.
    purges_by_arrival: bool = False
    # Forward extremities that stay where they are, because a Synapse runs that remembers them (P-51).
    extremities_kept: frozenset = frozenset()

    def is_local(self, event: Event) -> bool:
        name = event.event_id if self.local_by_event_id else event.sender
        return name.partition(":")[2] == self.server_name


class History:
    """The events of a server as a sequence of purges leaves them."""

    def __init__(self, events: dict[str, Event], rules: Rules):
        self.events = dict(events)
        self.rules = rules
        # Events that a purge turned into outliers or selected, for those who look at the result.
        self.outliered: set[str] = set()
        self.empty_purges: set[str] = set()
        self.cuts: dict[str, int] = {}

    def cut_before_event(self, event_id: str) -> int:
        return self.events[event_id].depth

    def cut_before_ts(self, room_id: str, ts: int) -> int | None:
        """R-50: the depth of the newest expired event, which itself survives; None where nothing has expired.

        With defect T by R-23 and R-21: of the newest event up to the first one that arrived at that time.
        """
        if not self.rules.purges_by_arrival:
            expired = [
                event
                for event in self.events.values()
                if event.room_id == room_id and event.has_expired(ts) and not event.outlier and not event.rejected
            ]
            return max(expired, key=lambda event: event.stream_ordering).depth if expired else None
        reached = [event.stream_ordering for event in self.events.values() if event.stream_ordering > 0 and event.received_ts >= ts]
        limit = min(reached) if reached else max(event.stream_ordering for event in self.events.values()) + 1
        anchors = [
            event
            for event in self.events.values()
            if event.room_id == room_id and event.stream_ordering <= limit and not event.outlier and not event.rejected
        ]
        return max(anchors, key=lambda event: event.stream_ordering).depth if anchors else None

    def purge(self, room_id: str, cut: int, delete_local: bool, ts: int | None = None):
        """P-4 and P-5, with P-21 unless the rules forget it; by time without what has not expired (R-50)."""

        def deletable(event):
            return not event.is_state and (delete_local or not self.rules.is_local(event))

        def stays(event):
            is_young = ts is not None and not self.rules.purges_by_arrival and not event.has_expired(ts)
            return is_young or event.event_id in self.rules.extremities_kept

        selected = {
            event.event_id
            for event in self.events.values()
            if event.room_id == room_id and event.depth < cut and (not event.outlier or deletable(event))
            and not stays(event)
        }
        doomed = {event_id for event_id in selected if deletable(self.events[event_id])}
        if not self.rules.forgets_redactions:
            # A redaction may redact a redaction: until nothing more is saved.
            while saved := {event_id for event_id in doomed if self._must_stay(event_id, doomed)}:
                doomed -= saved
        self.cuts[room_id] = max(cut, self.cuts.get(room_id, cut))
        if not selected:
            self.empty_purges.add(room_id)
        else:
            self.empty_purges.discard(room_id)
        for event_id in doomed:
            del self.events[event_id]
        for event_id in selected - doomed:
            self.events[event_id] = replace(self.events[event_id], outlier=True)
            self.outliered.add(event_id)

    def _must_stay(self, event_id, doomed) -> bool:
        target = self.events[event_id].redacts
        return target is not None and target in self.events and target not in doomed

    def fate_of(self, event_id) -> str:
        event = self.events.get(event_id)
        return "gone" if event is None else "outlier" if event.outlier else "in the timeline"

    def of_room(self, room_id) -> dict[str, Event]:
        return {event_id: event for event_id, event in self.events.items() if event.room_id == room_id}
