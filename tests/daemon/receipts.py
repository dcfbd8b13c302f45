"""Reads receipts without roomkeeper: `receipts.py KEY FILE` a whole file, `receipts.py KEY --proof` proofs from stdin.

Only Python's own library is needed: RFC 6962's tree and RFC 8032's signatures are written out below.
"""
import base64, hashlib, json, sys

P, Q = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


def point(b):
    y, sign = int.from_bytes(b, "little") & (1 << 255) - 1, b[31] >> 7
    x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert (x * x - x2) % P == 0, "no point"
    return (x if x & 1 == sign else P - x, y)


def add(a, b):
    t = D * a[0] * b[0] * a[1] * b[1] % P
    return ((a[0] * b[1] + b[0] * a[1]) * pow(1 + t, -1, P) % P, (a[1] * b[1] + a[0] * b[0]) * pow(1 - t, -1, P) % P)


def times(n, a):
    total = (0, 1)
    while n:
        total, a, n = (add(total, a) if n & 1 else total), add(a, a), n >> 1
    return total


BASE = point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def checkpoint(note, key):
    name, key_hash, public = key.split("+", 2)
    public = base64.b64decode(public)
    assert hashlib.sha256(name.encode() + b"\n" + public).hexdigest()[:8] == key_hash, "key"
    text, signature = note.split("\n\n")
    dash, signer, signed = signature.split(" ")
    signed = base64.b64decode(signed)
    assert (dash, signer, signed[:4].hex()) == ("\u2014", name, key_hash), "another key"
    r, s = signed[4:36], int.from_bytes(signed[36:], "little")
    k = hashlib.sha512(r + public[1:] + text.encode() + b"\n").digest()
    k = int.from_bytes(k, "little") % Q
    assert s < Q and times(s, BASE) == add(point(r), times(k, point(public[1:]))), "signature"
    origin, size, root, _at = text.split("\n")
    assert origin == name, "origin"
    return int(size), base64.b64decode(root)


def leaf(line):
    return hashlib.sha256(b"\0" + line.encode()).digest()


def node(left, right):
    return hashlib.sha256(b"\1" + left + right).digest()


def root(leaves):
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    left = 1 << (len(leaves) - 1).bit_length() - 1
    return node(root(leaves[:left]), root(leaves[left:]))


def proven(hash, index, size, path):
    """The algorithm of RFC 9162, 2.1.3.2, which goes up by the bits of the index."""
    fn, sn = index, size - 1
    for other in path:
        assert sn, "too long"
        if fn & 1 or fn == sn:
            hash = node(other, hash)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            hash = node(hash, other)
        fn, sn = fn >> 1, sn >> 1
    assert sn == 0, "too short"
    return hash


key = sys.argv[1]
if sys.argv[2] == "--proof":
    for proof in json.load(sys.stdin)["proofs"]:
        hash = base64.b64decode(proof["leaf"])
        assert "line" not in proof or leaf(proof["line"]) == hash, "line"
        size, signed = checkpoint(proof["checkpoint"], key)
        path = [base64.b64decode(other) for other in proof["path"]]
        assert proven(hash, proof["seq"], size, path) == signed, "proof"
        print("proven", proof["seq"], "of", size)
else:
    lines, note = open(sys.argv[2], encoding="utf-8", newline="").read().split("\n\n", 1)
    leaves = []
    for seq, line in enumerate(lines.split("\n")):
        said = json.loads(line)
        assert said.get("seq", said.get("forgotten")) == seq, "order"
        leaves.append(base64.b64decode(said["leaf"]) if "forgotten" in said else leaf(line))
    assert checkpoint(note, key) == (len(leaves), root(leaves)), "tree"
    print("verified", len(leaves))
