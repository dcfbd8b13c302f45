"""State groups: how they are stored is each program's own affair, what they mean is not (I-8, I-36)."""

from collections import defaultdict


class StateGroups:
    """All groups of a database, resolved on demand."""

    def __init__(self, database):
        session = database.session()
        self.rooms = dict(session.execute("SELECT id, room_id FROM state_groups").fetchall())
        self.edges = session.execute("SELECT state_group, prev_state_group FROM state_group_edges").fetchall()
        self.of_event = dict(session.execute("SELECT event_id, state_group FROM event_to_state_groups").fetchall())
        self.entries = defaultdict(dict)
        rows = session.execute("SELECT state_group, type, state_key, event_id FROM state_groups_state")
        for group, kind, key, event_id in rows:
            self.entries[group][kind, key] = event_id
        session.close()
        self._parents = {group: parent for group, parent in self.edges}
        self._resolved = {}

    def resolve(self, group) -> dict:
        """The full state of a group: of each (type, state key) the entry nearest to it (P-33)."""
        path = []
        while group is not None and group not in self._resolved:
            if group in path:
                raise ValueError(f"state group {group} is its own ancestor")
            path.append(group)
            group = self._parents.get(group)
        state = self._resolved.get(group, {})
        for member in reversed(path):
            state = {**state, **self.entries.get(member, {})}
            self._resolved[member] = state
        return state

    def path(self, group) -> list:
        """The group and those that it rests on."""
        path = []
        while group is not None and group not in path:
            path.append(group)
            group = self._parents.get(group)
        return path

    def unreferenced(self) -> set:
        return self.rooms.keys() - set(self.of_event.values())

    def size_by_room(self) -> dict:
        """Rows of `state_groups_state` and `state_group_edges` together, which collecting groups may only lower."""
        sizes = defaultdict(int)
        for group, entries in self.entries.items():
            sizes[self.rooms.get(group)] += len(entries)
        for group, _ in self.edges:
            sizes[self.rooms.get(group)] += 1
        return sizes
