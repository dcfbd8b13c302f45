"""Words for filling a room: each does one thing through the client-server API and returns the event's id."""

import itertools

from client import Client, quote


class Room:
    _transaction = itertools.count()

    def __init__(self, shape: str, version: str, room_id: str, creator: "User"):
        self.shape = shape
        self.version = version
        self.room_id = room_id
        self.creator = creator
        # What is to be done to this room's rows when the server is stopped (surgery.py).
        self.surgery = None

    @property
    def path(self):
        return f"/_matrix/client/v3/rooms/{quote(self.room_id)}"

    def send(self, user, kind, content):
        path = f"{self.path}/send/{kind}/{next(self._transaction)}"
        return user.client.put(path, content)["event_id"]

    def say(self, user, text, **more):
        return self.send(user, "m.room.message", {"msgtype": "m.text", "body": text, **more})

    def set(self, user, kind, content, key=""):
        return user.client.put(f"{self.path}/state/{kind}/{quote(key)}", content)["event_id"]

    def topic(self, user, text):
        return self.set(user, "m.room.topic", {"topic": text})

    def reply(self, user, to, text):
        return self.say(user, text, **{"m.relates_to": {"m.in_reply_to": {"event_id": to}}})

    def thread(self, user, root, text):
        return self.say(user, text, **{"m.relates_to": {"rel_type": "m.thread", "event_id": root}})

    def react(self, user, to, key):
        relation = {"rel_type": "m.annotation", "event_id": to, "key": key}
        return self.send(user, "m.reaction", {"m.relates_to": relation})

    def edit(self, user, of, text):
        new = {"msgtype": "m.text", "body": text}
        return self.say(user, f"* {text}", **{"m.new_content": new, "m.relates_to": {"rel_type": "m.replace", "event_id": of}})

    def redact(self, user, of):
        path = f"{self.path}/redact/{quote(of)}/{next(self._transaction)}"
        return user.client.put(path, {"reason": "test"})["event_id"]

    def mention(self, user, whom, text):
        return self.say(user, f"{whom.user_id}: {text}", **{"m.mentions": {"user_ids": [whom.user_id]}})

    def invite(self, user, whom):
        user.client.post(f"{self.path}/invite", {"user_id": whom.user_id})

    def join(self, user):
        user.client.post(f"{self.path}/join")

    def leave(self, user):
        user.client.post(f"{self.path}/leave")

    def kick(self, user, whom):
        user.client.post(f"{self.path}/kick", {"user_id": whom.user_id})

    def ban(self, user, whom):
        user.client.post(f"{self.path}/ban", {"user_id": whom.user_id})

    def forget(self, user):
        user.client.post(f"{self.path}/forget")

    def read(self, user, event, kind="m.read", **body):
        user.client.post(f"{self.path}/receipt/{kind}/{quote(event)}", body)

    def report(self, user, event):
        user.client.post(f"{self.path}/report/{quote(event)}", {"reason": "test", "score": -1})

    def let_many_speak(self, user):
        """A power-level change; creators stand above the list from room version 12 on, and may not be in it."""
        levels = user.client.get(f"{self.path}/state/m.room.power_levels")
        levels["events_default"] = 0
        levels["redact"] = 0
        levels["state_default"] = 0
        return self.set(user, "m.room.power_levels", levels)


class User:
    def __init__(self, port: int, account: dict):
        self.user_id = account["user_id"]
        self.account = account
        self.client = Client(port, account["access_token"])

    def create_room(self, shape, version, **options) -> Room:
        body = {"preset": "public_chat", "room_version": version, "name": shape, **options}
        return Room(shape, version, self.client.post("/_matrix/client/v3/createRoom", body)["room_id"], self)
