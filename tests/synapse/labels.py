"""What a program wrote, told in words that two programs share.

Ids of events and rooms, stream orderings, state groups and chains are drawn or computed anew by whoever writes an event.
Here every new one is called after what it is: the first leave of bob in a room is that, whoever wrote it.
"""

import json
from collections import Counter, defaultdict

STREAMS = {"stream_ordering", "event_stream_ordering", "stream_id", "bump_stamp", "last_receipt_stream_ordering"}
# When it was, and what follows from that and from the order in which people were moved, which is nobody's promise.
TIMES = {"received_ts", "origin_server_ts", "depth", "topological_ordering"}


class Labels:
    """The new events of a database, by what they are."""

    def __init__(self, database, since: int, successors: dict):
        """`successors`: new rooms by their ids, with the name of the room that each follows."""
        self.rooms = {room_id: f"<the room after {shape}>" for room_id, shape in successors.items()}
        self.events, self.streams = {}, {}
        session = database.session()
        seen = Counter()
        rows = session.execute(
            "SELECT e.event_id, e.stream_ordering, e.room_id, e.type, s.state_key, e.sender"
            " FROM events e LEFT JOIN state_events s USING (event_id) WHERE e.stream_ordering > ? ORDER BY 2",
            (since,),
        )
        for event_id, stream, room, kind, key, sender in rows:
            what = (self.rooms.get(room, room), kind, key, sender)
            seen[what] += 1
            label = f"<{seen[what]}. {kind} {key or ''} by {sender} in {what[0]}>"
            self.events[event_id] = label
            self.streams[stream] = label
        places = session.execute("SELECT event_id, chain_id, sequence_number FROM event_auth_chains").fetchall()
        self.places = {(chain, number): self.word(event_id) for event_id, chain, number in places}
        self.at = {self.word(event_id): (chain, number) for event_id, chain, number in places}
        self.links = defaultdict(list)
        links = "SELECT origin_chain_id, origin_sequence_number, target_chain_id, target_sequence_number FROM event_auth_chain_links"
        for origin, number, *target in session.execute(links).fetchall():
            self.links[origin].append((number, *target))
        session.close()

    def reaches(self, event, other) -> bool:
        """Whether the chains lead from one event to another, over as many links as it takes."""
        if event not in self.at or other not in self.at:
            return False
        (chain, number), seen = self.at[other], {}
        waiting = [self.at[event]]
        while waiting:
            here, upto = waiting.pop()
            if seen.get(here, 0) >= upto:
                continue
            seen[here] = upto
            waiting += [(target, at) for origin, target, at in self.links[here] if origin <= upto]
        return seen.get(chain, 0) >= number

    def word(self, value):
        if isinstance(value, str):
            return self.events.get(value) or self.rooms.get(value) or value
        return value

    def row(self, table: str, row: dict) -> tuple:
        if table == "event_auth_chains":
            first = self.places.get((row["chain_id"], 1))
            return (("event_id", self.word(row["event_id"])), ("after", first), ("number", row["sequence_number"]))
        if table == "event_auth_chain_links":
            origin = (row["origin_chain_id"], row["origin_sequence_number"])
            target = (row["target_chain_id"], row["target_sequence_number"])
            return (("from", self.places.get(origin, origin)), ("to", self.places.get(target, target)))
        words = []
        for column, value in row.items():
            if column in TIMES:
                continue
            if column in STREAMS:
                value = self.streams.get(value, value)
            elif table == "event_json" and column == "json":
                value = self.json(value)
            elif table == "event_json" and column == "internal_metadata" and row["event_id"] in self.events:
                # An older release says of each event that it was not imported.
                value = json.dumps({name: true for name, true in json.loads(value).items() if name != "historical"})
            words.append((column, self.word(value)))
        return tuple(words)

    def json(self, text: str) -> str:
        """An event without what differs by time, order and key."""
        event = json.loads(text)
        if event.get("event_id", "") not in self.events and "age_ts" not in event.get("unsigned", {}):
            return text
        for member in ("signatures", "hashes", "origin_server_ts", "depth", "prev_events", "origin", "membership", "prev_state"):
            event.pop(member, None)
        event["unsigned"].pop("age_ts", None)
        if event["type"] == "m.room.power_levels":
            # Who may start calls: only newer releases say so (D-22), and 1.128 says it in the wrong place.
            event["content"].get("events", {}).pop("m.call.invite", None)
            event["content"].pop("m.call.invite", None)
        auth = [entry[0] if isinstance(entry, list) else entry for entry in event["auth_events"]]
        event["auth_events"] = sorted(map(self.word, auth))
        return json.dumps({name: self.deep(value) for name, value in event.items()}, sort_keys=True)

    def deep(self, value):
        if isinstance(value, dict):
            return {name: self.deep(inside) for name, inside in value.items()}
        if isinstance(value, list):
            return [self.deep(inside) for inside in value]
        return self.word(value)

    def tables(self, read: dict) -> dict:
        """Every table as a count of rows in these words."""
        told = defaultdict(Counter)
        for name, table in read.items():
            for row, count in table.rows.items():
                told[name][self.row(name, dict(zip(table.columns, row)))] += count
        return told

    def states(self, groups) -> dict:
        """The state after every new event, in these words."""
        return {
            label: {key: self.word(entry) for key, entry in groups.resolve(groups.of_event[event_id]).items()}
            for event_id, label in self.events.items()
            if event_id in groups.of_event
        }
