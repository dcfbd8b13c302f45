"""An imagined remote server: its user speaks in our rooms through the federation API.

Without remote senders `delete_local_events: false` would delete nothing, and events could not arrive late or on a
side branch (P-3, P-6, P-19).  The peer only ever calls; nobody can call it, its name is a closed loopback port.
"""

import base64
import json
import subprocess
import time
from pathlib import Path

from client import Client, Refused, quote

PEER_NAME = "127.0.0.1:1"
KEY_VERSION = "peer"
KEY_ID = f"ed25519:{KEY_VERSION}"
SEED = "VGhpcyBpcyBhIHRocm93LWF3YXkgc2VlZCBvZiAzMmI"
SIGNER = Path(__file__).with_name("peer_signer.py")
FOREVER = 4_000_000_000_000


class Peer:
    """Use as a context manager: it keeps a signing process."""

    user_id = f"@eve:{PEER_NAME}"

    def __init__(self, server):
        self.server = server
        self._transactions = 0

    def __enter__(self):
        command = [self.server.python, SIGNER, PEER_NAME, KEY_VERSION, SEED]
        self._signer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        verify_key = json.loads(self._signer.stdout.readline())["verify_key"]
        self._introduce(verify_key)
        self._client = Client(self.server.port)
        return self

    def __exit__(self, *_):
        self._client.close()
        self._signer.stdin.close()
        self._signer.wait(10)

    def _introduce(self, verify_key):
        """Puts our key where Synapse keeps those it has fetched: it cannot fetch ours, we do not listen."""
        response = {"server_name": PEER_NAME, "valid_until_ts": FOREVER, "verify_keys": {KEY_ID: {"key": verify_key}}}
        raw = base64.b64decode(verify_key + "=")
        with self.server.database.session(write=True) as session:
            session.execute(
                "INSERT INTO server_signature_keys"
                " (server_name, key_id, from_server, ts_added_ms, verify_key, ts_valid_until_ms) VALUES (?, ?, ?, 0, ?, ?)",
                (PEER_NAME, KEY_ID, PEER_NAME, raw, FOREVER),
            )
            session.execute(
                "INSERT INTO server_keys_json (server_name, key_id, from_server, ts_added_ms, ts_valid_until_ms, key_json)"
                " VALUES (?, ?, ?, 0, ?, ?)",
                (PEER_NAME, KEY_ID, PEER_NAME, FOREVER, json.dumps(response).encode()),
            )

    def _sign(self, order):
        self._signer.stdin.write(json.dumps(order) + "\n")
        self._signer.stdin.flush()
        return json.loads(self._signer.stdout.readline())

    def _call(self, method, path, body=None):
        request = {"method": method, "uri": path, "origin": PEER_NAME, "destination": self.server.server_name}
        if body is not None:
            request["content"] = body
        signature = self._sign({"request": request})["signatures"][PEER_NAME][KEY_ID]
        authorization = (
            f'X-Matrix origin="{PEER_NAME}",destination="{self.server.server_name}",key="{KEY_ID}",sig="{signature}"'
        )
        return self._client.call(method, path, body, authorization=authorization)

    def join(self, room):
        path = f"/_matrix/federation/v1/make_join/{quote(room.room_id)}/{quote(self.user_id)}?ver={room.version}"
        event = self._call("GET", path)["event"]
        event["origin"] = PEER_NAME
        done = self._sign({"event": event, "keep": ["membership"]})
        path = f"/_matrix/federation/v2/send_join/{quote(room.room_id)}/{quote(done['event_id'])}"
        self._call("PUT", path, done["event"])
        return done["event_id"]

    def authority(self, room) -> list[str]:
        """The auth events by which our user may speak now."""
        with self.server.database.session() as session:
            rows = session.execute(
                "SELECT event_id FROM current_state_events WHERE room_id = ? AND"
                " (type IN ('m.room.create', 'm.room.power_levels') OR type = 'm.room.member' AND state_key = ?)",
                (room.room_id, self.user_id),
            ).fetchall()
        return [row[0] for row in rows]

    def send(self, room, kind, content, after=None, by=None, **more):
        """Sends one event and waits until it is stored.

        It comes after the given event or after what is newest, and is allowed by the given auth events or by those
        in force now.
        """
        with self.server.database.session() as session:
            previous = [after] if after else self._forward_extremities(session, room)
            marks = ",".join("?" * len(previous))
            (depth,) = session.execute(f"SELECT max(depth) FROM events WHERE event_id IN ({marks})", previous).fetchone()
        authority = by or self.authority(room)
        event = {
            "type": kind, "room_id": room.room_id, "sender": self.user_id, "content": content, "origin": PEER_NAME,
            "origin_server_ts": int(time.time() * 1000), "depth": depth + 1, "prev_events": previous,
            "auth_events": authority, **more,
        }
        done = self._sign({"event": event, "keep": []})
        self._transactions += 1
        body = {"origin": PEER_NAME, "origin_server_ts": event["origin_server_ts"], "pdus": [done["event"]], "edus": []}
        answer = self._call("PUT", f"/_matrix/federation/v1/send/{self._transactions}", body)
        verdict = answer["pdus"].get(done["event_id"])
        if verdict is None or "error" in verdict:
            raise Refused("PUT", "send", 200, answer)
        self._await(done["event_id"])
        return done["event_id"]

    @staticmethod
    def _forward_extremities(session, room):
        sql = "SELECT event_id FROM event_forward_extremities WHERE room_id = ?"
        return [row[0] for row in session.execute(sql, (room.room_id,))]

    def _await(self, event_id):
        """Inbound events are queued by Synapse; the answer comes before they are stored."""
        deadline = time.monotonic() + 30
        with self.server.database.session() as session:
            while time.monotonic() < deadline:
                if session.execute("SELECT 1 FROM events WHERE event_id = ?", (event_id,)).fetchone():
                    return
                time.sleep(0.02)
        raise TimeoutError(f"{event_id} was not stored")

    def say(self, room, text, **more):
        return self.send(room, "m.room.message", {"msgtype": "m.text", "body": text}, **more)

    def redact(self, room, of):
        return self.send(room, "m.room.redaction", {"reason": "test"}, redacts=of)

    def topic(self, room, text, **more):
        return self.send(room, "m.room.topic", {"topic": text}, state_key="", **more)
