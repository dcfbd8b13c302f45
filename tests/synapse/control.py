"""A copy on which Synapse only starts, is asked as often as a purge asks, and stops."""

import time

import database
import rows
from releases import python_of
from server import Server
from volatile import is_volatile


def drift(template, scratch) -> list[str]:
    """What such a copy has that its template had not, and that volatile.py does not know of."""
    home = template.copy(scratch / "control")
    with Server(python_of(template.release), home) as server:
        client = server.client(template.admin_token)
        # Longer than Synapse's short chores sleep (5 s): what they change is to be seen here, not in a purge.
        for _ in range(6):
            client.get("/_synapse/admin/v1/rooms")
            time.sleep(1)
        client.close()
    found = rows.differences(template.tables, rows.read_all(database.of(home)))
    return [str(difference) for difference in found if not is_volatile(difference)]
