"""One plan carried out by both on copies of one template, and all that is known about it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import beside
import database
import judge
import rows
from keeper import NOTHING_TO_DO, Keeper
from model import History, Rules, read_events
from plans import purges_of
from releases import Release, python_of
from server import SERVER_NAME
from state import StateGroups
from volatile import is_volatile


@dataclass
class Template:
    release: Release
    home: Path
    manifest: dict

    def __post_init__(self):
        self.database = database.of(self.home)
        self.events = read_events(self.database)
        self.tables = rows.read_all(self.database)
        self.groups = StateGroups(self.database)
        self.bodies = self._bodies()
        self.shapes = {room["room_id"]: room["shape"] for room in self.manifest["rooms"]}
        table = self.tables["event_forward_extremities"]
        self.extremities = {row[table.columns.index("event_id")] for row in table.rows}
        self.admin_token = self.manifest["admin"]["access_token"]

    def _bodies(self) -> dict[str, str]:
        """The text of every message, by event; long enough to be told from other bytes, and without quotes to escape."""
        table = self.tables["event_json"]
        event, text = table.columns.index("event_id"), table.columns.index("json")
        bodies = {row[event]: json.loads(row[text])["content"].get("body", "") for row in table.rows}
        return {event_id: body for event_id, body in bodies.items() if len(body) > 8 and '"' not in body}

    def copy(self, to: Path) -> Path:
        """A server of its own, without the template's logs."""
        return database.copy(self.home, to)


@dataclass(frozen=True)
class Outcome:
    """How a purge ended that did not end alike for both."""

    purge: object
    done: bool  # by roomkeeper
    reason: str  # of the judge


@dataclass
class Case:
    template: Template
    plan: object
    scratch: Path
    problems: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.release = self.template.release
        self.purges = purges_of(self.plan, self.template.manifest["rooms"], self.template.events)
        self.shapes = self.template.shapes
        # The judge's copy, where there is a judge.
        self.synapse = self.synapse_tables = self.synapse_groups = None
        # Rooms whose purge the judge could not finish (defect D).
        self.judge_failed: dict[str, str] = {}
        # The judge's history with its defects, and the one that was promised.
        self.judged = self._history(local_by_event_id="G" in self.release.defects, forgets_redactions=True, purges_by_arrival=True)
        # P-51: beside a Synapse that cannot be told, forward extremities stay.
        kept = frozenset(self.template.extremities if self.plan.beside else ())
        self.promised = self._history(extremities_kept=kept)
        # Ours without P-21: what stays here stays because it is local, what stays in `promised` only, for its target.
        self.without_p21 = self._history(extremities_kept=kept, forgets_redactions=True)
        # Ours without R-50, and without P-51: what is otherwise in `promised`, is so by that rule.
        self.without_r50 = self._history(extremities_kept=kept, purges_by_arrival=True)
        self.without_p51 = self._history()

    def _history(self, **rules) -> History:
        return History(self.template.events, Rules(SERVER_NAME, **rules))

    def complain(self, text: str):
        self.problems.append(text)

    def name_of(self, room_id) -> str:
        return self.shapes.get(room_id, str(room_id))

    def let_synapse_purge(self):
        self.synapse = self.template.copy(self.scratch / f"{self.plan.name}-synapse")
        self.verdicts = judge.purge_all(python_of(self.release), self.synapse, self.template.admin_token, self.purges)

    def trust_keeper(self):
        """Without a judge: what roomkeeper did counts as allowed, promises.py and aftermath.py remain."""
        self.verdicts = [(judge.DONE if code == 0 and NOTHING_TO_DO not in said else judge.REFUSED, "") for code, said in self.answers]

    def let_keeper_purge(self):
        self.keeper = self.template.copy(self.scratch / f"{self.plan.name}-roomkeeper")
        # Plans of several steps name things the other way, so that both ways are walked.
        self.hand = Keeper(self.keeper, other_way=len(self.plan.steps) > 1)
        if self.plan.beside:
            self.answers, troubles = beside.purge_all(self)
            self.problems += troubles
        else:
            self.answers = [self.hand.purge(order) for order in self.purges]

    def compare_outcomes(self, deviations):
        """Both must do, or decline, the same purges; the models follow what was done."""
        for order, (verdict, reason), (code, said) in zip(self.purges, self.verdicts, self.answers):
            if verdict == judge.DONE:
                self._advance(self.judged, order)
            elif verdict == judge.FAILED:
                self.judge_failed[order.room_id] = reason
            nothing_to_do = code == 0 and NOTHING_TO_DO in said
            done = code == 0 and not nothing_to_do
            if nothing_to_do and self.promised.cut_before_ts(order.room_id, order.before_ts) is not None:
                self.complain(f"{self.name_of(order.room_id)}: purge of {order}: something has expired, and roomkeeper says: {said}")
            if done:
                for history in (self.promised, self.without_p21, self.without_p51):
                    self._advance(history, order)
            if done or verdict == judge.DONE:
                self._advance(self.without_r50, order)
            agreed = code in (0, 1) and done == (verdict == judge.DONE)
            if not agreed and not deviations.excuse(self, Outcome(order, done, reason)):
                self.complain(
                    f"{self.name_of(order.room_id)}: purge of {order}: Synapse {verdict} ({reason}),"
                    f" roomkeeper exit {code} ({said[-500:]})"
                )

    @staticmethod
    def _advance(history, order):
        if order.before_event is not None:
            cut = history.cut_before_event(order.before_event)
        else:
            cut = history.cut_before_ts(order.room_id, order.before_ts)
        if cut is not None:
            history.purge(order.room_id, cut, order.delete_local, order.before_ts)

    def foreign_key_failure(self, room_id) -> bool:
        return "FOREIGN KEY" in self.judge_failed.get(room_id, "").upper()

    def read_results(self):
        self.read_keeper()
        if self.synapse is not None:
            self.synapse_tables = rows.read_all(database.of(self.synapse))
            self.synapse_groups = StateGroups(database.of(self.synapse))

    def read_keeper(self):
        kept = database.of(self.keeper)
        self.keeper_tables = rows.read_all(kept)
        self.keeper_groups = StateGroups(kept)
        self.keeper_events = read_events(kept)
        # What deviations.py has worked out already of this result.
        self.worked_out = {}

    def compare_rows(self, deviations):
        """Every row that differs must be explained; whatever is not is a complaint."""
        for difference in rows.differences(self.synapse_tables, self.keeper_tables):
            if self._stored_otherwise(difference) or is_volatile(difference):
                continue
            if not deviations.explain(self, difference):
                self.complain(f"{self.name_of(self.room_of(difference))}: {difference}")

    def _stored_otherwise(self, difference) -> bool:
        """How a living group is stored may differ; what it means may not, and promises.py looks at that."""
        if difference.table not in ("state_groups_state", "state_group_edges"):
            return False
        group = difference.row["state_group"]
        return group in self.synapse_groups.rooms and group in self.keeper_groups.rooms

    def room_of(self, difference) -> str | None:
        row = difference.row
        if row.get("room_id"):
            return row["room_id"]
        event = self.template.events.get(row.get("event_id"))
        if event is not None:
            return event.room_id
        for column in ("id", "state_group"):
            if difference.table.startswith("state_group") and column in row:
                return self.template.groups.rooms.get(row[column])
        return None

