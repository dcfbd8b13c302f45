"""The judge: Synapse purges a copy of the template through its admin API."""

import time

from client import Refused, quote
from server import Server

DONE, FAILED, REFUSED = "complete", "failed", "refused"


class Unsettled(Exception):
    """The judge did not come to an end."""


def purge_all(python, home, admin_token, purges) -> list[tuple[str, str]]:
    """Runs the purges in order; an outcome and its reason for each.  Leaves the server stopped."""
    with Server(python, home) as server:
        client = server.client(admin_token)
        outcomes = [purge(client, order) for order in purges]
        client.close()
        await_state_groups(server.database)
    return outcomes


def purge(client, order) -> tuple[str, str]:
    path = f"/_synapse/admin/v1/purge_history/{quote(order.room_id)}"
    body = {"delete_local_events": order.delete_local}
    if order.before_event is not None:
        path += f"/{quote(order.before_event)}"
    else:
        body["purge_up_to_ts"] = order.before_ts
    try:
        purge_id = client.post(path, body)["purge_id"]
    except Refused as refused:
        return REFUSED, str(refused.body)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        status = client.get(f"/_synapse/admin/v1/purge_history_status/{purge_id}")
        if status["status"] in (DONE, FAILED):
            return status["status"], status.get("error", "")
        time.sleep(0.02)
    raise Unsettled(f"purge of {order} does not end")


# Synapse's purge marks what it found when it looked, also a group that its own chore deleted in between. Such a mark stays
# for good and does nothing (P-46); the chore, which takes ten minutes in life and a third of a second here, meets it more often.
MARKED = "state_groups_pending_deletion AS p LEFT JOIN state_groups AS g ON g.id = p.state_group"


def await_state_groups(database):
    """Until unreferenced groups are gone, where they go by and by (P-40 to P-43; the launcher hurries them)."""
    with database.session() as session:
        if "state_groups_pending_deletion" not in database.tables(session):
            return
        sql = f"SELECT p.state_group, g.room_id FROM {MARKED} WHERE g.id IS NOT NULL ORDER BY p.state_group"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pending = session.execute(sql).fetchall()
            if not pending:
                return
            time.sleep(0.1)
        told = [what_is_known(session, group, room) for group, room in pending[:3]]
        raise Unsettled(f"{len(pending)} state groups stay pending: {'; '.join(told)}")


def what_is_known(session, group, room):
    """Why a group may stay: who uses it, and what is built on it."""
    counts = []
    for what, rows in (
        ("persist it", "state_groups_persisting WHERE state_group"),
        ("mappings", "event_to_state_groups WHERE state_group"),
        ("groups rest on it", "state_group_edges WHERE prev_state_group"),
    ):
        (count,) = session.execute(f"SELECT count(*) FROM {rows} = {group:d}").fetchone()
        counts.append(f"{count} {what}")
    return f"{group} of {room}: {', '.join(counts)}"


def forget_marks_of_nothing(database) -> int:
    """Takes the marks of P-46 away, so that what is checked afterwards is ours; answers how many there were."""
    with database.session(write=True) as session:
        gone = [group for (group,) in session.execute(f"SELECT p.state_group FROM {MARKED} WHERE g.id IS NULL").fetchall()]
        for group in gone:
            session.execute(f"DELETE FROM state_groups_pending_deletion WHERE state_group = {group:d}")
        session.commit()
        return len(gone)
