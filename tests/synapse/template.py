"""Template servers: built once, stopped, then copied for each purge."""

import hashlib
import json
import shutil
from pathlib import Path

import cluster
import database
import scenario
from releases import Release, cache_directory, python_of
from server import SERVER_NAME, Server

# What a template is made of: when one of these changes, the old templates are not used any more.
INGREDIENTS = (
    "launcher.py", "client.py", "server.py", "rooms.py", "peer.py", "peer_signer.py", "surgery.py",
    "scenario.py", "template.py",
)
# The rows of a template on PostgreSQL.
DUMP = "homeserver.dump"


def fingerprint(release: Release) -> str:
    here = Path(__file__).parent
    digest = hashlib.sha256(f"{release.pins} {release.big_room_messages}".encode())
    for name in INGREDIENTS:
        digest.update((here / name).read_bytes())
    return digest.hexdigest()[:12]


def template(release: Release, scratch: Path | None = None) -> tuple[Path, dict]:
    """The directory of a stopped server of this release, and what is known of it.

    With a `scratch` directory it is one on PostgreSQL, whose rows are put on the server of this run.
    """
    engine = "-postgres" if scratch else ""
    home = cache_directory() / "servers" / f"{release.version}{engine}-{fingerprint(release)}"
    if not (home / "manifest.json").exists():
        shutil.rmtree(home, ignore_errors=True)
        if scratch:
            make_on_server(release, home)
        else:
            make(release, home)
    manifest = json.loads((home / "manifest.json").read_text())
    if scratch:
        dump, home = home / DUMP, shutil.copytree(home, scratch / "template")
        database.put_on_server(home, cluster.running().restore(dump))
    return home, manifest


def make_on_server(release: Release, home: Path):
    running = cluster.running()
    name = running.create()
    building = home.with_name(f"{home.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    database.put_on_server(building, name)
    make(release, building)
    running.dump(name, building / DUMP)
    (building / database.MARK).unlink()
    building.rename(home)


def make(release: Release, home: Path):
    python = python_of(release)
    with Server(python, home, building=True) as server:
        server.await_background_updates()
        manifest = scenario.build(server, release.big_room_messages)
        server.await_summaries()
    with server.database.session(write=True) as session:
        scenario.operate(session, manifest["rooms"])
    # Once more up and down, so that what a first restart changes is in the template already.
    with Server(python, home) as server:
        server.await_background_updates()
    manifest = {"version": release.version, "server_name": SERVER_NAME, "admin": manifest["accounts"]["admin"], **manifest}
    with server.database.session() as session:
        (schema,) = session.execute("SELECT version FROM schema_version").fetchone()
        if schema != release.schema:
            raise RuntimeError(f"Synapse {release.version} made schema {schema}, not {release.schema}")
        manifest["schema"] = schema
        for room in manifest["rooms"]:
            room["events"] = events_of(session, room["room_id"])
    # Written last: its presence says that the template is whole.
    (home / "manifest.json").write_text(json.dumps(manifest, indent=1))


def events_of(session, room_id) -> list[dict]:
    """The events of a room in the order of history."""
    rows = session.execute(
        "SELECT e.event_id, e.type, s.state_key, e.sender, e.depth, e.stream_ordering, e.received_ts"
        " FROM events e LEFT JOIN state_events s USING (event_id)"
        " WHERE e.room_id = ? ORDER BY e.topological_ordering, e.stream_ordering",
        (room_id,),
    )
    names = ("event_id", "type", "state_key", "sender", "depth", "stream_ordering", "received_ts")
    return [dict(zip(names, row)) for row in rows]
