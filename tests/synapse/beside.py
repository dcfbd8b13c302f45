"""roomkeeper purges while Synapse runs on the same database, and is being read (section 9, I-75)."""

import threading

import judge
from aftermath import page_to_the_end, paged_by_admin
from client import Refused, quote
from releases import python_of
from server import Server


def purge_all(case) -> tuple[list, list[str]]:
    """roomkeeper's answers, and what went wrong for those who used the server meanwhile."""
    troubles = []
    with Server(python_of(case.release), case.keeper) as server:
        stop = threading.Event()
        reader = threading.Thread(target=_read, args=(server, case, stop, troubles))
        reader.start()
        case.hand.beside = True
        try:
            answers = [case.hand.purge(order) for order in case.purges]
        finally:
            case.hand.beside = False
            stop.set()
            reader.join()
        # The same process, its caches warm with what is no longer there.
        case.read_keeper()
        admin = server.client(case.template.admin_token)
        for room in case.template.manifest["rooms"]:
            troubles += [f"beside: {trouble}" for trouble in paged_by_admin(case, admin, room, warm=True)]
        admin.close()
        judge.await_state_groups(server.database)
    return answers, troubles


def _read(server, case, stop, troubles):
    """Pages the rooms that are being purged and syncs, as clients do; nobody is to see an error."""
    accounts = case.template.manifest["accounts"]
    admin, ann = server.client(case.template.admin_token), server.client(accounts["ann"]["access_token"])
    rounds = 0
    while not stop.is_set():
        for room in case.template.manifest["rooms"]:
            try:
                page_to_the_end(admin, f"/_synapse/admin/v1/rooms/{quote(room['room_id'])}/messages", "b")
                ann.get("/_matrix/client/v3/sync", timeout=0)
            except (Refused, OSError) as error:
                troubles.append(f"a reader of {room['shape']} met {error}")
            if stop.is_set():
                break
        rounds += 1
    if rounds == 0:
        troubles.append("the reader did not read")
    admin.close()
    ann.close()
