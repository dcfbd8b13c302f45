"""Starts a Synapse with its slow clocks quickened.  Runs under the interpreter of a Synapse environment.

Nothing that Synapse decides is changed, only *when* its periodic chores run:

* unreferenced state groups are deleted at once, not ten minutes later (P-40 to P-43), so that the judge's
  database can be compared after a second;
* while a server is being built, push actions are folded into `event_push_summary` every second;
* on a server under test the chores that depend on the age of the data are stopped, because the template
  they work on may be days old, and a chore is not a purge.
"""

import os
import sys

BUILDING = os.environ.get("ORACLE_PHASE") == "build"

QUICKENED = {"_delete_state_groups_loop": 300}
if BUILDING:
    QUICKENED["_rotate_notifs"] = 1000

STOPPED = set() if BUILDING else {
    "_rotate_notifs",
    "_clear_old_push_actions_staging",
    "_censor_redactions",
    "_prune_old_user_ips",
    "_prune_old_outbound_device_pokes",
    "_cleanup_transactions",
    "_cleanup_old_transaction_ids",
    "_delete_old_forward_extrem_cache",
    "_prune_device_lists_changes_in_room",
    "_clean_scheduled_tasks",
    "_delete_expired_sessions",
}


def adopt_clock(clock_class):
    """Makes `looping_call` look at the name of what it is to repeat."""
    original = clock_class.looping_call

    def looping_call(self, f, interval, *args, **kwargs):
        name = getattr(f, "__name__", "")
        millis = QUICKENED.get(name)
        if name in STOPPED:
            millis = 365 * 24 * 3600 * 1000
        if millis is not None:
            # Newer releases measure in a Duration, older ones in milliseconds.
            number = isinstance(interval, (int, float))
            interval = millis if number else type(interval)(milliseconds=millis)
        return original(self, f, interval, *args, **kwargs)

    clock_class.looping_call = looping_call


def main():
    try:
        from synapse.util.clock import Clock
    except ImportError:
        from synapse.util import Clock
    adopt_clock(Clock)

    try:
        from synapse.storage.databases.state.deletion import StateDeletionDataStore
    except ImportError:
        pass  # schema < 89 deletes at once by itself
    else:
        StateDeletionDataStore.DELAY_BEFORE_DELETION_MS = 100

    from synapse.app import homeserver

    sys.argv[0] = "homeserver"
    homeserver.main()


if __name__ == "__main__":
    main()
