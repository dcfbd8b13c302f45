"""A real Synapse on SQLite, for the benchmark: make one, start it, talk to it, stop it.

Run with the Python of a virtual environment that has `matrix-synapse`. Everything listens on the loopback only.
"""

import hashlib
import hmac
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

SHARED_SECRET = "bench"
LIMITS = {"per_second": 100000, "burst_count": 100000}


def free_port():
    """A TCP port that nobody listens on right now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def quote(part):
    return urllib.parse.quote(part, safe="")


class Homeserver:
    """One server directory: `homeserver.yaml`, `homeserver.db`, `signing.key`. Use as a context manager to have it run.

    Whatever the directory's own `homeserver.yaml` says about paths, ports and limits, it is started with a second
    configuration file (`local.yaml`, written here) that points into this directory and at a free port.
    """

    def __init__(self, directory, python=sys.executable):
        self.dir = Path(directory).resolve()
        self.python = str(python)
        self.port = None
        self.process = None

    def configure(self):
        """Writes `local.yaml`: this directory's paths, a free port, no rate limits, nothing that leaves this machine."""
        self.port = free_port()
        (self.dir / "log.yaml").write_text(json.dumps({
            "version": 1,
            "formatters": {"f": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
            "handlers": {"h": {"class": "logging.FileHandler", "filename": str(self.dir / "homeserver.log"), "formatter": "f"}},
            "root": {"level": "WARNING", "handlers": ["h"]},
            "disable_existing_loggers": False,
        }))
        local = {
            "pid_file": str(self.dir / "homeserver.pid"),
            "log_config": str(self.dir / "log.yaml"),
            "media_store_path": str(self.dir / "media"),
            "signing_key_path": str(self.signing_key_path()),
            "database": {"name": "sqlite3", "args": {"database": str(self.dir / "homeserver.db")}},
            "listeners": [{"port": self.port, "type": "http", "tls": False, "x_forwarded": False,
                           "bind_addresses": ["127.0.0.1"], "resources": [{"names": ["client"], "compress": False}]}],
            "registration_shared_secret": SHARED_SECRET,
            "macaroon_secret_key": "bench", "form_secret": "bench",
            "trusted_key_servers": [], "suppress_key_server_warning": True, "report_stats": False,
            "presence": {"enabled": False},
            "rc_message": LIMITS, "rc_registration": LIMITS, "rc_admin_redaction": LIMITS, "rc_room_creation": LIMITS,
            "rc_login": {"address": LIMITS, "account": LIMITS, "failed_attempts": LIMITS},
            "rc_joins": {"local": LIMITS, "remote": LIMITS}, "rc_joins_per_room": LIMITS,
            "rc_invites": {"per_room": LIMITS, "per_user": LIMITS, "per_issuer": LIMITS},
            "background_updates": {"sleep_enabled": False, "min_batch_size": 1000, "default_batch_size": 1000},
        }
        (self.dir / "local.yaml").write_text(json.dumps(local, indent=1))

    def signing_key_path(self):
        keys = sorted(self.dir.glob("*.key"))
        if not keys:
            raise SystemExit(f"no signing key (*.key) in {self.dir}")
        return keys[0]

    def server_name(self):
        """The `server_name` of `homeserver.yaml` (a plain scalar in every file that we meet)."""
        text = (self.dir / "homeserver.yaml").read_text()
        found = re.search(r"^\s*[\"']?server_name[\"']?\s*:\s*[\"']?([^\"'\s,]+)", text, re.M)
        if not found:
            raise SystemExit(f"no server_name in {self.dir / 'homeserver.yaml'}")
        return found.group(1)

    def start(self, timeout=600, years_ago=0):
        """Starts and waits for the first answer. With `years_ago`, the server believes that it is then."""
        self.configure()
        self.out = open(self.dir / "homeserver.out", "ab")
        program = ["-m", "synapse.app.homeserver"] if not years_ago else ["-c", (
            "import runpy, sys, time\n"
            f"now = time.time\ntime.time = lambda: now() - {years_ago * 365 * 86400}\n"
            "sys.argv[0] = 'synapse'\nrunpy.run_module('synapse.app.homeserver', run_name='__main__')")]
        self.process = subprocess.Popen(
            [self.python, *program, "-c", str(self.dir / "homeserver.yaml"), "-c", str(self.dir / "local.yaml")],
            stdout=self.out, stderr=self.out, cwd=self.dir, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.call("GET", "/_matrix/client/versions", timeout=5)
                return self
            except (OSError, ApiError):
                if self.process.poll() is not None:
                    raise SystemExit(f"Synapse ended with {self.process.returncode}; see {self.dir / 'homeserver.out'} and homeserver.log")
                if time.monotonic() > deadline:
                    self.stop()
                    raise SystemExit("Synapse did not answer in time")
                time.sleep(0.1)

    def stop(self):
        """SIGTERM, then waits. SQLite folds the write-ahead log into the file when the last connection closes."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None
        self.out.close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def call(self, method, path, body=None, token=None, timeout=3600):
        """One request; the decoded JSON answer, or ApiError."""
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method=method, headers=headers,
                                         data=None if body is None else json.dumps(body).encode())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ApiError(error.code, error.read().decode(errors="replace")) from None

    def register(self, name, admin=False):
        """A user through the shared secret; answers (user id, access token)."""
        nonce = self.call("GET", "/_synapse/admin/v1/register")["nonce"]
        text = "\0".join([nonce, name, "bench-password", "admin" if admin else "notadmin"])
        mac = hmac.new(SHARED_SECRET.encode(), text.encode(), hashlib.sha1).hexdigest()
        answer = self.call("POST", "/_synapse/admin/v1/register",
                           {"nonce": nonce, "username": name, "password": "bench-password", "admin": admin, "mac": mac})
        return answer["user_id"], answer["access_token"]

    def background_updates_done(self, token, timeout=600):
        deadline = time.monotonic() + timeout
        while self.call("GET", "/_synapse/admin/v1/background_updates/status", token=token)["current_updates"]:
            if time.monotonic() > deadline:
                raise SystemExit("background updates do not end")
            time.sleep(0.2)


class ApiError(Exception):
    """An answer that is not 2xx."""

    def __init__(self, code, text):
        super().__init__(f"HTTP {code}: {text}")
        self.code = code


def make_server(directory, room_version="10", members=40, python=sys.executable):
    """A small server of our own: one admin, some members, one room with every kind of row that `multiply.py` repeats."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "homeserver.yaml").write_text("server_name: bench.example\nreport_stats: false\n")
    subprocess.run([str(python), "-c",
                    "import sys; from signedjson.key import generate_signing_key, write_signing_keys\n"
                    "write_signing_keys(open(sys.argv[1], 'w'), [generate_signing_key('a_bnch')])",
                    str(directory / "signing.key")], check=True)
    hs = Homeserver(directory, python)
    try:
        # Long ago, so that the events which multiply.py adds have room for true times.
        hs.start(years_ago=3)
        admin, token = hs.register("admin", admin=True)
        hs.background_updates_done(token)
        users = [(admin, token)] + [hs.register(f"member{n}") for n in range(members)]
        room = hs.call("POST", "/_matrix/client/v3/createRoom", {
            "preset": "public_chat", "name": "The big room", "topic": "all things", "room_version": room_version}, token)["room_id"]
        for _, member in users[1:]:
            hs.call("POST", f"/_matrix/client/v3/join/{quote(room)}", {}, member)
        small = hs.call("POST", "/_matrix/client/v3/createRoom", {"name": "A small room", "room_version": room_version}, token)["room_id"]
        sent = []

        def send(who, kind, content, room=room):
            path = f"/_matrix/client/v3/rooms/{quote(room)}/send/{kind}/t{len(sent)}"
            sent.append(hs.call("PUT", path, content, users[who % len(users)][1])["event_id"])
            return sent[-1]

        for n in range(60):
            first = send(n, "m.room.message", {"msgtype": "m.text", "body": f"message number {n} with some words in it"})
            if n % 3 == 0:
                send(n + 1, "m.reaction", {"m.relates_to": {"rel_type": "m.annotation", "event_id": first, "key": "👍"}})
            if n % 4 == 0:
                send(n, "m.room.message", {"msgtype": "m.text", "body": "* edited", "m.new_content": {"msgtype": "m.text", "body": "edited"},
                                           "m.relates_to": {"rel_type": "m.replace", "event_id": first}})
            if n % 5 == 0:
                send(n + 2, "m.room.message", {"msgtype": "m.text", "body": f"in a thread, hello {users[3][0]}", "m.mentions": {"user_ids": [users[3][0]]},
                                               "m.relates_to": {"rel_type": "m.thread", "event_id": first}})
            if n % 10 == 0:
                hs.call("PUT", f"/_matrix/client/v3/rooms/{quote(room)}/redact/{quote(first)}/r{n}", {"reason": "no"}, users[n % len(users)][1])
            if n % 15 == 0:
                hs.call("PUT", f"/_matrix/client/v3/rooms/{quote(room)}/state/m.room.topic", {"topic": f"topic {n}"}, token)
            if n % 20 == 0:
                who, member = users[(n + 1) % len(users)]
                hs.call("PUT", f"/_matrix/client/v3/profile/{quote(who)}/displayname", {"displayname": f"Member at {n}"}, member)
        # The newest event of the server must be in a joined room (measurements.md, 7).
        send(0, "m.room.message", {"msgtype": "m.text", "body": "in the small room"}, small)
        last = send(0, "m.room.message", {"msgtype": "m.text", "body": "the last message"})
        for _, member in users[::5]:
            hs.call("POST", f"/_matrix/client/v3/rooms/{quote(room)}/receipt/m.read/{quote(last)}", {}, member)
    finally:
        hs.stop()
    (directory / "base.json").write_text(json.dumps({
        "server_name": "bench.example", "room_id": room, "admin_token": token}, indent=1) + "\n")


if __name__ == "__main__":
    make_server(sys.argv[1])
