#!/usr/bin/env python3
"""Writes libpq.jsonl: whom psycopg2, with which Synapse connects, asks for what, by what is written and what the
environment says. Servers A and B of this script note who comes. Needs psycopg2; the tests play the same servers and read
the table alone.

    python3 tests/config/libpq.py

A row: args (of psycopg2.connect), env, passfile (the text of a file that PGPASSFILE or `passfile` names as $PASSFILE),
servers (how each behaves), and what came of it: a list of [server, user, database, options, password], and the server with
which a connection was made, if one was. $A and $B stand for ports, $USER for the user of the process, $GONE for a port
at which nobody listens.
"""

import getpass
import json
import os
import pathlib
import socket
import struct
import tempfile
import threading

import psycopg2

ASK, STARTING, PRIMARY, STANDBY, READONLY = "ask", "starting", "primary", "standby", "readonly"
H = {"host": "127.0.0.1", "port": "$A"}
U = {"user": "u", "dbname": "d"}
TWO = {"host": "127.0.0.1,127.0.0.1", "port": "$A,$B"}

# (args, env, passfile, servers)
CASES = [
    ({**H, **U, "password": "p"}, {}, None, {}),
    ({**H, "user": "u", "password": "p"}, {}, None, {}),
    ({**H, "password": "p"}, {}, None, {}),
    ({**H, "password": "p", "dbname": "d"}, {}, None, {}),
    ({**H, "password": "p"}, {"PGUSER": "envuser"}, None, {}),
    ({**H, "password": "p", "user": ""}, {"PGUSER": "envuser"}, None, {}),
    ({**H, "password": "p", "user": "u"}, {"PGDATABASE": "envdb"}, None, {}),
    ({**H, "password": "p", "user": "u", "dbname": ""}, {"PGDATABASE": "envdb"}, None, {}),
    ({**H, "password": "p", "user": "u", "database": "d2"}, {}, None, {}),
    ({**H, **U}, {"PGPASSWORD": "envpw"}, None, {}),
    ({**H, **U, "password": ""}, {"PGPASSWORD": "envpw"}, None, {}),
    ({**H, **U, "password": "", "passfile": "$PASSFILE"}, {"PGPASSWORD": "envpw"}, "*:*:*:*:filepw\n", {}),
    ({**H, **U, "passfile": "$PASSFILE"}, {"PGPASSWORD": "envpw"}, "*:*:*:*:filepw\n", {}),
    ({**H, **U, "passfile": "$PASSFILE"}, {"PGPASSWORD": ""}, "*:*:*:*:filepw\n", {}),
    ({**H, **U}, {"PGPASSFILE": "$PASSFILE"}, "*:*:*:*:filepw\n", {}),
    ({**H, **U, "passfile": "$PASSFILE"}, {}, "127.0.0.1:$A:d:u:right\n*:*:*:*:wrong\n", {}),
    ({**H, **U, "passfile": "$PASSFILE"}, {}, "localhost:$A:d:u:wrong\n127.0.0.1:$A:d:v:wrong\n127.0.0.1:$A:d:u:a\\:b\\\\c\n", {}),
    ({**H, **U, "passfile": "$PASSFILE"}, {}, "# 127.0.0.1:$A:d:u:comment\n127.0.0.1:*:d:u:star\n", {}),
    ({**H, **U, "passfile": "$PASSFILE"}, {}, "127.0.0.1:1:d:u:wrong\n", {}),
    ({**H, "user": "u", "passfile": "$PASSFILE"}, {}, "127.0.0.1:$A:u:u:own\n", {}),
    ({"hostaddr": "127.0.0.1", "port": "$A", **U, "passfile": "$PASSFILE"}, {}, "127.0.0.1:$A:d:u:byaddress\n", {}),
    ({"host": "db.example", "hostaddr": "127.0.0.1", "port": "$A", **U, "passfile": "$PASSFILE"}, {}, "127.0.0.1:*:*:*:no\ndb.example:*:*:*:byname\n", {}),
    ({**U, "password": "p"}, {"PGHOST": "127.0.0.1", "PGPORT": "$A"}, None, {}),
    ({"host": "127.0.0.1", **U, "password": "p"}, {"PGPORT": "$A"}, None, {}),
    ({"port": "$A", **U, "password": "p"}, {"PGHOST": "127.0.0.1", "PGPORT": "$GONE"}, None, {}),
    ({"port": "$A", **U, "password": "p"}, {"PGHOSTADDR": "127.0.0.1"}, None, {}),
    ({**H, **U, "password": "p"}, {"PGOPTIONS": "-c search_path=x"}, None, {}),
    ({**H, **U, "password": "p", "options": "-c a.b=1"}, {"PGOPTIONS": "-c search_path=x"}, None, {}),
    ({**H, **U, "password": "p", "options": ""}, {"PGOPTIONS": "-c search_path=x"}, None, {}),
    ({**TWO, **U, "password": "p"}, {}, None, {}),
    ({"host": "127.0.0.1,127.0.0.1", "port": "$GONE,$B", **U, "password": "p"}, {}, None, {}),
    ({"host": "127.0.0.1,127.0.0.1", "port": "$GONE,$B", **U, "passfile": "$PASSFILE"}, {}, "127.0.0.1:$A:*:*:ofA\n127.0.0.1:$B:*:*:ofB\n", {}),
    ({**TWO, **U, "passfile": "$PASSFILE"}, {}, "127.0.0.1:$A:*:*:ofA\n127.0.0.1:$B:*:*:ofB\n", {"A": STARTING}),
    ({**TWO, **U, "password": "p"}, {}, None, {"A": STARTING}),
    ({"host": "127.0.0.1,127.0.0.1", "port": "$A", **U, "password": "p"}, {}, None, {"A": STARTING}),
    ({"hostaddr": "127.0.0.1,127.0.0.1", "port": "$GONE,$B", **U, "password": "p"}, {}, None, {}),
    ({"host": "127.0.0.1,127.0.0.1", "hostaddr": "127.0.0.1", "port": "$A", **U}, {}, None, {}),
    ({"host": "127.0.0.1", "port": "$A,$B", **U}, {}, None, {}),
    ({**H, **U, "target_session_attrs": "nonsense"}, {}, None, {}),
    *[
        ({**TWO, **U, "target_session_attrs": wanted}, {}, None, {"A": a, "B": b})
        for wanted in ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
        for a, b in ((STANDBY, PRIMARY), (PRIMARY, STANDBY), (READONLY, PRIMARY), (PRIMARY, PRIMARY), (STANDBY, STANDBY))
    ],
    ({**TWO, **U}, {"PGTARGETSESSIONATTRS": "primary"}, None, {"A": STANDBY, "B": PRIMARY}),
    ({**TWO, **U, "target_session_attrs": ""}, {"PGTARGETSESSIONATTRS": "primary"}, None, {"A": STANDBY, "B": PRIMARY}),
    ({**H, **U, "password": "p", "service": "nothing"}, {}, None, {}),
    ({**H, **U, "password": "p", "hunter": "2"}, {}, None, {}),
    ({**H, **U, "password": "p", "keepalives_idle": "10", "application_name": "x", "connect_timeout": "5"}, {}, None, {}),
    ({**H, **U, "password": "p", "connect_timeout": "soon"}, {}, None, {}),
    ({"host": "127.0.0.1", "port": "0", **U}, {}, None, {}),
    ({"host": "127.0.0.1", "port": "70000", **U}, {}, None, {}),
    ({"host": "127.0.0.1", "port": "", **U, "password": "p"}, {"PGPORT": "$GONE"}, None, {}),
    ({**H, **U, "password": "p", "sslmode": "disable"}, {}, None, {}),
    ({**H, **U, "password": "p", "sslmode": "require"}, {}, None, {}),
    ({**H, **U, "password": "p", "sslmode": "nonsense"}, {}, None, {}),
]


class Server(threading.Thread):
    def __init__(self, name, seen):
        super().__init__(daemon=True)
        self.name_, self.seen, self.how = name, seen, ASK
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.start()

    def run(self):
        while True:
            connection, _ = self.socket.accept()
            try:
                self.talk(connection)
            except (OSError, struct.error):
                pass
            finally:
                connection.close()

    def talk(self, c):
        def exactly(n):
            data = b""
            while len(data) < n:
                more = c.recv(n - len(data))
                if not more:
                    raise OSError
                data += more
            return data

        def message(kind, body):
            c.sendall(kind + struct.pack("!i", len(body) + 4) + body)

        while True:
            length, code = struct.unpack("!ii", exactly(8))
            body = exactly(length - 8)
            if code in (80877103, 80877104):  # encryption, of TLS or of GSS
                c.sendall(b"N")
                continue
            break
        words = body.split(b"\0")
        keys = dict(zip((w.decode() for w in words[::2]), (w.decode() for w in words[1::2])))
        met = [self.name_, keys.get("user"), keys.get("database"), keys.get("options"), None]
        self.seen.append(met)
        if self.how == ASK:
            message(b"R", struct.pack("!i", 3))
            kind = exactly(1)
            text = exactly(struct.unpack("!i", exactly(4))[0] - 4)
            if kind == b"p":
                met[4] = text.rstrip(b"\0").decode()
            message(b"E", b"SFATAL\0VFATAL\0C28P01\0Mno\0\0")
        elif self.how == STARTING:
            message(b"E", b"SFATAL\0VFATAL\0C57P03\0Mstarting\0\0")
        else:
            standby, readonly = self.how == STANDBY, self.how != PRIMARY
            message(b"R", struct.pack("!i", 0))
            for key, value in (("server_version", "15.1"), ("client_encoding", "UTF8"), ("in_hot_standby", "on" if standby else "off"),
                               ("default_transaction_read_only", "on" if self.how == READONLY else "off"), ("standard_conforming_strings", "on"), ("DateStyle", "ISO"), ("TimeZone", "UTC")):
                message(b"S", key.encode() + b"\0" + value.encode() + b"\0")
            message(b"K", struct.pack("!ii", 1, 1))
            message(b"Z", b"I")
            while True:
                kind = exactly(1)
                text = exactly(struct.unpack("!i", exactly(4))[0] - 4)
                if kind == b"X":
                    return
                if kind == b"Q":
                    if text.upper().startswith((b"SET", b"BEGIN")):
                        message(b"C", b"SET\0")
                    else:
                        values = [b"t" if standby else b"f", b"on" if readonly else b"off"]
                        fields = b"".join(n + b"\0" + struct.pack("!ihihih", 0, 0, 25, -1, -1, 0) for n in (b"a", b"b"))
                        message(b"T", struct.pack("!h", 2) + fields)
                        message(b"D", struct.pack("!h", 2) + b"".join(struct.pack("!i", len(v)) + v for v in values))
                        message(b"C", b"SELECT 1\0")
                    message(b"Z", b"I")


def main():
    seen = []
    servers = {name: Server(name, seen) for name in "AB"}
    with socket.create_server(("127.0.0.1", 0)) as s:
        gone = s.getsockname()[1]
    rows = []
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    os.environ["HOME"] = "/nonexistent"
    with tempfile.TemporaryDirectory() as directory:
        for args, env, passfile, how in CASES:
            seen.clear()
            for name, server in servers.items():
                server.how = how.get(name, ASK)
            path = os.path.join(directory, "passfile")

            def real(text):
                for mark, value in (("$A", servers["A"].port), ("$B", servers["B"].port), ("$GONE", gone), ("$PASSFILE", path)):
                    text = text.replace(mark, str(value))
                return text

            if passfile is not None:
                pathlib.Path(path).write_text(real(passfile))
                os.chmod(path, 0o600)
            os.environ.update({key: real(value) for key, value in env.items()})
            reached = None
            try:
                connection = psycopg2.connect(**{key: real(value) for key, value in args.items()})
                reached = next(name for name, server in servers.items() if server.port == int(connection.info.port))
                connection.close()
            except psycopg2.Error:
                pass
            for key in env:
                del os.environ[key]
            me = getpass.getuser()
            met = [["$USER" if field == me else field for field in row] for row in seen]
            rows.append({"args": args, "env": env, "passfile": passfile, "servers": how, "met": met, "reached": reached})
    path = pathlib.Path(__file__).with_name("libpq.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(len(rows), "cases, libpq", psycopg2.extensions.libpq_version())


main()
