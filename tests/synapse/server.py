"""Configuration, start and stop of one Synapse on a directory with a database."""

import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import cluster
import database
from client import Client

SERVER_NAME = "oracle.test"
SHARED_SECRET = "only-for-throw-away-servers"
LAUNCHER = Path(__file__).with_name("launcher.py")
# Any fixed ed25519 seed will do; a fixed one keeps the signatures of equal builds equal.
SIGNING_KEY = "ed25519 a_orac 9S0bPhVHEGUwwWQY0jBCpa0ARYJBIMrDCNzzGHbYlSM\n"


class Unwell(Exception):
    """A Synapse that did not start, did not stop, or died."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_configuration(home: Path, port: int) -> Path:
    """`homeserver.yaml` and its companions, with everything off that talks to the world or to the clock.

    The file is written as JSON, which is YAML too.  Paths inside are relative to `home`: a template server
    can be copied anywhere.
    """
    unlimited = {"per_second": 100000, "burst_count": 100000}
    configuration = {
        "server_name": SERVER_NAME,
        "report_stats": False,
        "suppress_key_server_warning": True,
        "trusted_key_servers": [],
        "signing_key_path": "signing.key",
        "log_config": "log.yaml",
        "pid_file": "homeserver.pid",
        "media_store_path": "media",
        "database": database.of(home).settings(),
        "listeners": [
            {
                "port": port,
                "bind_addresses": ["127.0.0.1"],
                "type": "http",
                "tls": False,
                "resources": [{"names": ["client", "federation"], "compress": False}],
            }
        ],
        "registration_shared_secret": SHARED_SECRET,
        "macaroon_secret_key": SHARED_SECRET,
        "form_secret": SHARED_SECRET,
        "bcrypt_rounds": 4,
        "enable_search": True,
        "enable_ephemeral_messages": True,
        # Nobody is out there: the peer of the scenario calls us, and is never called.
        "send_federation": False,
        "url_preview_enabled": False,
        "presence": {"enabled": False},
        "retention": {"enabled": False},
        # Censoring depends on the age of the template; purges of uncensored redactions are the harder case (P-21).
        "redaction_retention_period": None,
        "allow_public_rooms_over_federation": False,
        "background_updates": {"sleep_enabled": False, "min_batch_size": 1000, "default_batch_size": 1000},
        "rc_message": unlimited,
        "rc_registration": unlimited,
        "rc_admin_redaction": unlimited,
        "rc_login": {"address": unlimited, "account": unlimited, "failed_attempts": unlimited},
        "rc_joins": {"local": unlimited, "remote": unlimited},
        "rc_joins_per_room": unlimited,
        "rc_invites": {"per_room": unlimited, "per_user": unlimited, "per_issuer": unlimited},
        "rc_room_creation": unlimited,
        "rc_federation": {
            "window_size": 1000, "sleep_limit": 100000, "sleep_delay": 0, "reject_limit": 100000, "concurrent": 100,
        },
    }
    # Synapse does not look at our block.  Small strides, so that even small rooms take several.
    configuration["roomkeeper"] = {"stride": {"events": 40}}
    log = {
        "version": 1,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"file": {"class": "logging.FileHandler", "filename": "homeserver.log", "formatter": "plain"}},
        "root": {"level": os.environ.get("ORACLE_LOG", "WARNING"), "handlers": ["file"]},
    }
    home.mkdir(parents=True, exist_ok=True)
    path = home / "homeserver.yaml"
    path.write_text(json.dumps(configuration, indent=2))
    (home / "log.yaml").write_text(json.dumps(log, indent=2))
    if not (home / "signing.key").exists():
        (home / "signing.key").write_text(SIGNING_KEY)
    return path


class Server:
    """A running Synapse; use as a context manager, it is stopped at the end whatever happens."""

    server_name = SERVER_NAME

    def __init__(self, python: Path, home: Path, building: bool = False):
        self.python = python
        self.home = home
        self.building = building
        self.port = 0
        self._process = None

    @property
    def database(self):
        return database.of(self.home)

    def __enter__(self):
        self.port = free_port()
        write_configuration(self.home, self.port)
        environment = {**os.environ, "ORACLE_PHASE": "build" if self.building else "test", "PYTHONUNBUFFERED": "1"}
        # Nobody asks Synapse to go through a proxy to its own loopback.
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            environment.pop(name, None)
        if not self.database.is_file:
            environment["PYTHONPATH"] = str(cluster.driver_directory())
        self._output = open(self.home / "stdout.log", "ab")
        self._process = subprocess.Popen(
            [self.python.absolute(), LAUNCHER, "-c", "homeserver.yaml"],
            cwd=self.home, env=environment, stdout=self._output, stderr=self._output, stdin=subprocess.DEVNULL,
        )
        try:
            self._await_health()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def _await_health(self):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise Unwell(f"Synapse ended at start: {self.last_words()}")
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    pass
                Client(self.port).call("GET", "/_matrix/client/versions")
                return
            except OSError:
                time.sleep(0.1)
        raise Unwell(f"Synapse did not answer in time: {self.last_words()}")

    def last_words(self) -> str:
        texts = [self.home / "stdout.log", self.home / "homeserver.log"]
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in texts if path.exists())

    def stop(self):
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._output.close()
        self.database.settle()

    def client(self, token=None) -> Client:
        return Client(self.port, token)

    def register(self, name: str, admin: bool = False) -> dict:
        """A new user by the shared secret: the same way for admins and others, and without a dialogue."""
        client = self.client()
        nonce = client.get("/_synapse/admin/v1/register")["nonce"]
        secret = "\0".join((nonce, name, "password", "admin" if admin else "notadmin"))
        mac = hmac.new(SHARED_SECRET.encode(), secret.encode(), hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": name, "password": "password", "admin": admin, "mac": mac}
        answer = client.post("/_synapse/admin/v1/register", body)
        client.close()
        return {"user_id": answer["user_id"], "access_token": answer["access_token"]}

    def await_background_updates(self):
        """A schema is only whole when its background updates have run (V-8)."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with self.database.session() as session:
                (left,) = session.execute("SELECT count(*) FROM background_updates").fetchone()
            if left == 0:
                return
            time.sleep(0.2)
        raise Unwell("background updates do not end")

    def await_summaries(self):
        """Until every push action is folded into the summaries: the next chore would change them otherwise."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with self.database.session() as session:
                (done,) = session.execute(
                    "SELECT (SELECT max(stream_ordering) FROM event_push_actions)"
                    " <= (SELECT stream_ordering FROM event_push_summary_stream_ordering)"
                ).fetchone()
            if done:
                return
            time.sleep(0.3)
        raise Unwell("push actions are not rotated")
