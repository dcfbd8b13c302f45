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


def await_state_groups(database):
    """Until unreferenced groups are gone, where they go by and by (P-40 to P-43; the launcher hurries them)."""
    with database.session() as session:
        if "state_groups_pending_deletion" not in database.tables(session):
            return
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            (pending,) = session.execute("SELECT count(*) FROM state_groups_pending_deletion").fetchone()
            if pending == 0:
                return
            time.sleep(0.1)
        raise Unsettled(f"{pending} state groups stay pending")
