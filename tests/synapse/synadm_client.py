"""A client that admins use, unchanged: the real `synadm` from PyPI against `roomkeeper serve`, over TCP and its socket.

Alone: tests/synapse/run --plans synadm
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import database
import keeper
from releases import cache_directory
from server import SERVER_NAME, free_port

SYNADM = "synadm==0.49.2"
TOKEN = "only-for-throw-away-daemons"


def program() -> Path:
    home = cache_directory() / "synadm"
    whole = home / "installed"
    if not (whole.exists() and whole.read_text() == SYNADM):
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        pip = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", SYNADM]
        subprocess.run(pip, check=True)
        whole.write_text(SYNADM)
    return home / "bin" / "synadm"


class Daemon:
    """`roomkeeper serve` on one stopped server."""

    def __init__(self, home: Path):
        self.home, self.port = home, free_port()
        # What everybody can read is refused (K-6).
        (home / "admin.token").touch(0o600)
        (home / "admin.token").write_text(TOKEN)
        configuration = json.loads((home / "homeserver.yaml").read_text())
        configuration["roomkeeper"] = {
            "listen": [f"127.0.0.1:{self.port}", f"unix:{home / 's'}"],
            "admin_token_path": str(home / "admin.token"),
        }
        (home / "keeper.yaml").write_text(json.dumps(configuration))

    def __enter__(self):
        command = [keeper.binary(), "-c", "keeper.yaml", "--offline=assume", "serve"]
        self._log = open(self.home / "keeper.log", "ab")
        self._process = subprocess.Popen(command, cwd=self.home, env=keeper.environment(self.home), stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (self.home / "s").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"roomkeeper serve: {(self.home / 'keeper.log').read_text()[-2000:]}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        self._process.send_signal(signal.SIGTERM)
        if self._process.wait(60) != 0:
            raise RuntimeError(f"roomkeeper serve: {(self.home / 'keeper.log').read_text()[-2000:]}")
        self._log.close()


class Synadm:
    """The program, with a configuration of its own."""

    def __init__(self, home: Path, protocol: str, base_url: str, token: str):
        self.home = home / f"synadm-{protocol}"
        self.home.mkdir()
        self.file = self.home / "synadm.yaml"
        settings = {
            "user": "admin", "token": token, "protocol": protocol, "base_url": base_url, "format": "json",
            "homeserver": "auto-retrieval", "server_discovery": "well-known", "ssl_verify": True, "timeout": 60,
            "admin_path": "/_synapse/admin", "matrix_path": "/_matrix",
        }
        self.file.write_text(json.dumps(settings))

    def run(self, *words) -> tuple[int, str]:
        command = [program(), "-c", self.file, "--batch", "-o", "json", *words]
        environment = {**os.environ, "HOME": str(self.home)}
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            environment.pop(name, None)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        return done.returncode, done.stdout + done.stderr

    def answer(self, *words):
        """The last JSON document that was printed; the exit code must be 0."""
        code, said = self.run(*words)
        if code != 0:
            raise AssertionError(f"synadm {' '.join(words)}: exit code {code}: {said}")
        decoder, found, at = json.JSONDecoder(), None, 0
        while at < len(said):
            try:
                found, at = decoder.raw_decode(said, at)
            except ValueError:
                at += 1
        return found


def expect(what, found, wanted):
    if found != wanted:
        yield f"{what}: {found!r}, and not {wanted!r}"


def rooms_of(home: Path) -> set:
    with database.of(home).session() as session:
        return {room for (room,) in session.execute("SELECT room_id FROM rooms").fetchall()}


def settled(synadm, *words):
    """Asks until the status is an end."""
    deadline = time.monotonic() + 60
    while True:
        answer = synadm.answer(*words)
        status = answer["results"][0] if "results" in answer else answer
        if status["status"] in ("complete", "failed"):
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"it does not end: {answer}")
        time.sleep(0.1)


def troubles(template, scratch: Path):
    home = template.copy(scratch / "synadm")
    rooms = {room["shape"]: room for room in template.manifest["rooms"]}
    with database.of(home).session(write=True) as db:
        # What purge-empty looks for: a room that the homeserver has counted, and nobody is in any more.
        empty = rooms["departed"]["room_id"]
        for table in ("current_state_events", "local_current_membership"):
            db.execute(f"DELETE FROM {table} WHERE room_id = ?", (empty,))
        db.execute("UPDATE room_stats_current SET local_users_in_room = 0 WHERE room_id = ?", (empty,))
        db.execute("UPDATE room_stats_current SET local_users_in_room = 1 WHERE local_users_in_room = 0 AND room_id <> ?", (empty,))
    with Daemon(home) as daemon:
        http = Synadm(home, "http", f"http://127.0.0.1:{daemon.port}", template.admin_token)
        unix = Synadm(home, "unix", str(home / "s"), TOKEN)
        yield from walk(http, rooms, home)
        yield from over_the_socket(unix, rooms)
        yield from empty_rooms(http, empty, home)
        stranger = Synadm(home / "synadm-http", "http", f"http://127.0.0.1:{daemon.port}", "no-such-token")
        code, said = stranger.run("room", "block-status", empty)
        if "M_UNKNOWN_TOKEN" not in said:
            yield f"a stranger is told {said}"
    code, said = keeper.Keeper(home).check()
    if code != 0:
        yield f"afterwards: {said}"


def over_the_socket(synadm, rooms):
    """What takes one request: this synadm forgets where the socket is after the first."""
    room = rooms["mentions"]
    yield from expect("version over the socket", "roomkeeper" in synadm.answer("version")["server_version"], True)
    yield from expect("block over the socket", synadm.answer("room", "block", room["room_id"]), {"block": True})
    yield from expect("block-status over the socket", synadm.answer("room", "block-status", room["room_id"])["block"], True)
    newest = room["events"][-1]["event_id"]
    started = synadm.answer("history", "purge", room["room_id"], "--before-event-id", newest)
    status = settled(synadm, "history", "purge-status", started["purge_id"])
    yield from expect("purge-status over the socket", status, {"status": "complete"})


def walk(synadm, rooms, home):
    # Of the two newest room versions that this release knows.
    *_, older, newer = (shape for shape in rooms if shape.startswith("everyday-v"))
    gone, at_once, history = (rooms[shape]["room_id"] for shape in (newer, older, "threads"))
    yield from expect("version", "roomkeeper" in synadm.answer("version")["server_version"], True)
    # Deleting, as a job.
    started = synadm.answer("room", "delete", gone, "--force-purge", "--block")
    delete_id = started["delete_id"]
    by_id = settled(synadm, "room", "delete-status", "--delete-id", delete_id)
    yield from expect("delete-status", (by_id["status"], by_id.get("error")), ("complete", None))
    by_room = synadm.answer("room", "delete-status", "--room-id", gone)
    yield from expect("delete-status of the room", [one["delete_id"] for one in by_room["results"]], [delete_id])
    yield from expect("block-status", synadm.answer("room", "block-status", gone)["block"], True)
    yield from expect("unblock", synadm.answer("room", "block", gone, "--unblock"), {"block": False})
    yield from expect("block-status", synadm.answer("room", "block-status", gone), {"block": False})
    yield from expect("block", synadm.answer("room", "block", gone), {"block": True})
    # Deleting, waited for.
    answer = synadm.answer("room", "delete", at_once, "--v1", "--force-purge")
    yield from expect("delete --v1", sorted(answer), ["failed_to_kick_users", "kicked_users", "local_aliases", "new_room_id"])
    yield from expect("rooms that are left", rooms_of(home) & {gone, at_once}, set())
    code, said = synadm.run("room", "delete", at_once)
    yield from expect("deleting an unknown room", (code, "Room not found." in said), (1, True))
    # History.
    newest = rooms["threads"]["events"][-1]["event_id"]
    started = synadm.answer("history", "purge", history, "--before-event-id", newest, "--delete-local")
    status = settled(synadm, "history", "purge-status", started["purge_id"])
    yield from expect("purge-status", status, {"status": "complete"})
    listed = synadm.answer("room", "list", "--limit", "5")
    yield from expect("room list", len(listed["rooms"]), 5)


def empty_rooms(synadm, empty, home):
    _, said = synadm.run("room", "purge-empty", "--dry-run")
    if empty not in said:
        yield f"purge-empty --dry-run: {said}"
    code, said = synadm.run("room", "purge-empty", "--batch-size", "7")
    yield from expect("purge-empty", (code, "delete_id" in said), (0, True))
    settled(synadm, "room", "delete-status", "--room-id", empty)
    yield from expect("the empty room", empty in rooms_of(home), False)
