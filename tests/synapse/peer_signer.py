"""Signs for the imagined remote server.  Runs under the interpreter of a Synapse environment, which has ed25519.

One JSON object a line in, one out.  `{"request": …}` comes back with signatures; `{"event": …, "keep": […]}` comes
back complete with hashes, signatures and, beside it, its id.  Only room versions 3 to 10 are spoken.
"""

import base64
import hashlib
import json
import sys

from canonicaljson import encode_canonical_json
from signedjson.key import decode_signing_key_base64
from signedjson.sign import sign_json

# What survives a redaction at the top level in room versions 3 to 10.
ESSENTIAL = (
    "type", "room_id", "sender", "state_key", "hashes", "signatures", "depth", "prev_events", "prev_state", "auth_events",
    "origin", "origin_server_ts", "membership",
)


def digest(thing):
    return hashlib.sha256(encode_canonical_json(thing)).digest()


def unpadded(data, urlsafe=False):
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    return encode(data).rstrip(b"=").decode()


def complete(event, keep, name, key):
    """The event with its hash and signature, and the id that follows from them."""
    bare = {field: value for field, value in event.items() if field not in ("hashes", "signatures", "unsigned")}
    event = {**bare, "hashes": {"sha256": unpadded(digest(bare))}}
    redacted = {field: event[field] for field in ESSENTIAL if field in event}
    redacted["content"] = {field: event["content"][field] for field in keep if field in event["content"]}
    event_id = "$" + unpadded(digest(redacted), urlsafe=True)
    event["signatures"] = sign_json(redacted, name, key)["signatures"]
    return {"event": event, "event_id": event_id}


def main():
    name, key_version, seed = sys.argv[1:]
    key = decode_signing_key_base64("ed25519", key_version, seed)
    print(json.dumps({"verify_key": unpadded(key.verify_key.encode())}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "request" in order:
            answer = sign_json(order["request"], name, key)
        else:
            answer = complete(order["event"], order["keep"], name, key)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
