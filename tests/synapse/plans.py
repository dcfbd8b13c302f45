"""Which purges are tried: every room of a copy is purged once per step, at a cut of its own."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """How far, by what, and whether local events go too."""

    by: str  # "event" or "ts"
    share: float  # of the room's history that lies before the cut
    delete_local: bool


@dataclass(frozen=True)
class Plan:
    name: str
    steps: tuple[Step, ...]
    quick: bool = False
    # Whether Synapse is started on the result afterwards; a third of the suite's time, so not for every plan.
    lives_on: bool = False
    # roomkeeper works while Synapse runs on the same file, is read from, and deletes the state groups (P-45).
    beside: bool = False


PLANS = (
    Plan("half-by-event-all", (Step("event", 0.5, True),), quick=True, lives_on=True),
    Plan("most-by-event-remote", (Step("event", 0.85, False),), quick=True, lives_on=True),
    Plan("to-the-last-event-all", (Step("event", 1.0, True),), lives_on=True),
    Plan("half-by-ts-remote", (Step("ts", 0.5, False),)),
    Plan("most-by-ts-all", (Step("ts", 0.8, True),)),
    # Before anything there is nothing to purge: refused by time stamp, empty by event (P-7, defect H).
    Plan("nothing", (Step("ts", -1.0, True), Step("event", 0.0, True))),
    Plan("twice-by-event", (Step("event", 0.3, False), Step("event", 0.7, True)), quick=True),
    Plan("twice-by-ts", (Step("ts", 0.25, True), Step("ts", 0.6, False)), lives_on=True),
    Plan("beside-by-event", (Step("event", 0.4, False), Step("event", 0.8, True)), quick=True, lives_on=True, beside=True),
)

# Every row of this room must survive every plan (I-40).
SPARED = "untouched"


@dataclass(frozen=True)
class Purge:
    """One purge of one room, as told to both programs."""

    room_id: str
    delete_local: bool
    before_event: str | None = None
    before_ts: int | None = None
    # The same point as `before_event`, as roomkeeper also takes it.
    token: str | None = None

    def __str__(self):
        point = f"event {self.before_event}" if self.before_event else f"ts {self.before_ts}"
        return f"{self.room_id} before {point}{' with local events' if self.delete_local else ''}"


def purges_of(plan: Plan, rooms: list[dict], events: dict) -> list[Purge]:
    """The plan's purges, step by step.  Cuts differ a little from room to room, to fall on many kinds of events."""
    purges = []
    for step in plan.steps:
        for n, room in enumerate(rooms):
            if room["shape"] == SPARED:
                continue
            if step.by == "ts" and step.share < 0:
                purges.append(Purge(room["room_id"], step.delete_local, before_ts=1))
                continue
            history = [
                event["event_id"]
                for event in room["events"]
                if event["event_id"] in events and not events[event["event_id"]].rejected
            ]
            place = round(step.share * (len(history) - 1))
            if 0 < step.share < 1:
                place = max(1, min(len(history) - 2, place + n % 5 - 2))
            event = events[history[place]]
            if step.by == "event":
                token = f"t{event.depth}-{event.stream_ordering}"
                purges.append(Purge(room["room_id"], step.delete_local, before_event=event.event_id, token=token))
            else:
                purges.append(Purge(room["room_id"], step.delete_local, before_ts=event.received_ts))
    return purges
