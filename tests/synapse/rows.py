"""Reading a whole database as rows, and finding where two of them differ."""

from collections import Counter
from dataclasses import dataclass


@dataclass
class Table:
    columns: tuple[str, ...]
    # The columns of a unique index, by which two versions of one row are recognised; none: rows have no identity.
    key: tuple[str, ...]
    rows: Counter


@dataclass
class Difference:
    """One row that is not the same in both: changed (both given), or there in one only."""

    table: str
    synapse: dict | None
    keeper: dict | None

    @property
    def row(self) -> dict:
        return self.synapse or self.keeper

    @property
    def kept_by_keeper_only(self) -> bool:
        return self.synapse is None

    @property
    def kept_by_synapse_only(self) -> bool:
        return self.keeper is None

    def changed(self) -> set[str]:
        if self.synapse is None or self.keeper is None:
            return set()
        return {column for column in self.synapse if self.synapse[column] != self.keeper[column]}

    def __str__(self):
        if self.synapse is None:
            return f"{self.table}: only roomkeeper has {brief(self.keeper)}"
        if self.keeper is None:
            return f"{self.table}: only Synapse has {brief(self.synapse)}"
        changes = ", ".join(
            f"{column}: Synapse {self.synapse[column]!r}, roomkeeper {self.keeper[column]!r}" for column in sorted(self.changed())
        )
        same = {column: value for column, value in self.synapse.items() if column not in self.changed()}
        return f"{self.table}: {brief(same)} has {changes}"


def brief(row: dict) -> str:
    return "{" + ", ".join(f"{column}: {str(value)[:60]}" for column, value in row.items() if value is not None) + "}"


def read_table(database, session, table: str) -> Table:
    cursor = session.execute(f'SELECT * FROM "{table}"')
    columns = tuple(column[0] for column in cursor.description)
    # The smallest set of columns that is unique.
    keys = [key for key in database.unique(session, table) if all(column in columns for column in key)]
    # Of PostgreSQL's arrays the driver makes lists, which cannot be counted.
    rows = (tuple(tuple(value) if isinstance(value, list) else value for value in row) for row in cursor.fetchall())
    return Table(columns, min(keys, key=len, default=()), Counter(rows))


def read_all(database) -> dict[str, Table]:
    with database.session() as session:
        return {name: read_table(database, session, name) for name in database.tables(session)}


def differences(synapse: dict[str, Table], keeper: dict[str, Table]) -> list[Difference]:
    """Every row that is not in both, tables in order; a table that only one has is a difference too."""
    found = []
    for name in sorted(synapse.keys() | keeper.keys()):
        if name not in synapse or name not in keeper:
            there = {"table": name}
            found.append(Difference(name, there if name in synapse else None, there if name in keeper else None))
            continue
        left, right = synapse[name], keeper[name]
        if left.columns != right.columns:
            found.append(Difference(name, dict(columns=left.columns), dict(columns=right.columns)))
            continue
        found += _table_differences(name, left, right)
    return found


def _table_differences(name: str, left: Table, right: Table):
    def named(row):
        return dict(zip(left.columns, row))

    only_left = [named(row) for row in (left.rows - right.rows).elements()]
    only_right = [named(row) for row in (right.rows - left.rows).elements()]
    partners = {}
    if left.key:
        for row in only_right:
            partners.setdefault(tuple(row[column] for column in left.key), []).append(row)
    for row in only_left:
        waiting = partners.get(tuple(row[column] for column in left.key)) if left.key else None
        if waiting:
            partner = waiting.pop()
            only_right.remove(partner)
            yield Difference(name, row, partner)
        else:
            yield Difference(name, row, None)
    for row in only_right:
        yield Difference(name, None, row)
