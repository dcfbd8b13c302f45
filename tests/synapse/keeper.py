"""The accused: roomkeeper purges another copy of the template by its command line."""

import os
import subprocess
from pathlib import Path

import database
from releases import REPOSITORY
from server import SERVER_NAME


def binary() -> Path:
    named = os.environ.get("ROOMKEEPER")
    candidates = [Path(named)] if named else [REPOSITORY / "target" / kind / "roomkeeper" for kind in ("release", "debug")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise SystemExit(f"no roomkeeper at {' or '.join(map(str, candidates))}: build it first, or set ROOMKEEPER")


# What roomkeeper says, with exit code 0, where a purge by time finds nothing that old; Synapse refuses such a purge.
NOTHING_TO_DO = "nothing was to be done"


def environment(home: Path) -> dict:
    """Where there is no file for it to lie beside, the ledger is in the server's directory."""
    return {**os.environ, "STATE_DIRECTORY": str(home)}


class Keeper:
    """roomkeeper on one stopped server."""

    def __init__(self, home: Path, other_way: bool = False):
        """`other_way`: name the database by its configuration file, and points by token."""
        self.home = home
        # Set while a Synapse runs on the same database.
        self.beside = False
        self.by_token = other_way
        self.address = (
            ["-c", "homeserver.yaml"]
            if other_way
            else ["--database", database.of(home).address(), "--server-name", SERVER_NAME]
        )

    def run(self, *arguments) -> subprocess.CompletedProcess:
        command = [binary(), *self.address, *["--beside"] * self.beside, *arguments]
        return subprocess.run(command, cwd=self.home, env=environment(self.home), capture_output=True, text=True, timeout=300)

    def purge(self, order, dry_run: bool = False) -> tuple[int, str]:
        """The exit code, and what was said."""
        if order.token is not None and self.by_token:
            point = ["--before-token", order.token]
        elif order.before_event is not None:
            point = ["--before-event", order.before_event]
        else:
            point = ["--before-ts", str(order.before_ts)]
        flags = ["--delete-local-events"] * order.delete_local + ["--dry-run"] * dry_run
        done = self.run("purge-history", order.room_id, *point, *flags)
        return done.returncode, (done.stdout + done.stderr).strip()

    def mendable(self) -> list[str]:
        """What a repair would change, but for what the homeserver itself has left behind."""
        import json
        plan = json.loads(self.run("--json", "repair", "--dry-run").stdout)
        return [f"{item['rule']}: {item['wrong']} ({item['rows']})" for item in plan["items"]]

    def check(self) -> tuple[int, str]:
        done = self.run("check")
        return done.returncode, (done.stdout + done.stderr).strip()
