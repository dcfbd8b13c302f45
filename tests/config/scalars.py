#!/usr/bin/env python3
"""Writes scalars.jsonl: thousands of plain scalars and what PyYAML's safe loader, with which Synapse reads its
configuration, makes of each. One JSON list a line: as written, kind, Python's str() of it (for floats its repr, which is
the same). Needs PyYAML; the tests read the table alone.

    python3 tests/config/scalars.py
"""

import datetime
import json
import pathlib
import random

import yaml

FIXED = """
~ null Null NULL nUll none None true True TRUE tRUE yes Yes YES y Y no No NO n N on On ON off Off OFF oN
0 00 000 -0 +0 7 07 08 09 010 -010 +010 0755 0o17 0O17 0b 0b0 0b1010 -0b11 0b_1 0b2 0x 0x1F 0xff -0x10 0X1F 0x_f 0xg 1_000 1_ _1
1__0 0_ 0_7 0_8 12345678901234567890 99999999999999999999999999 -12345678901234567890123 0xffffffffffffffffffffffff
0777777777777777777777777777777 1:30 01:30 1:60 1:59 1:5 -1:30 +1:30 190:20:30 1:2:3:4 190:20:30.15 1:30. 1:30.5 0:30 0:30.5
10:99 1:99.5 22:22 23:59:59 8008 65535 1. .5 5. -.5 +.5 1.5 -1.5 +1.5 1e5 1E5 1e+5 1.e5 1.e+5 1.5e5 1.5e+5 1.5e-5 1.5E+300 1.5e+400 1.0e-7
123e45 12e03 .1e+3 .1e3 ._1 .1_0 1_0.5_0 1.0e+16 1.0e+15 1.5e+15 1.0e+17 123456789012345678.0 0.0001 0.00001 0.1 0.30000000000000004
.inf .Inf .INF -.inf +.inf .iNf inf -inf .nan .NaN .NAN -.nan nan 1.2.3 1.2.3.4 127.0.0.1 ::1 1,5 1,000 2001-12-14 2001-1-4 2001-13-14
2001-02-29 2000-02-29 1900-02-29 0000-01-01 2026-01-01 2026-01-01T12:00:00 2026-01-01T12:00:00Z 2026-01-01t12:00:00.1 2026-01-01T12:00:00.123456789
2026-01-01T12:00:00.000 2026-01-01T12:00:00+02 2026-01-01T12:00:00-05:30 2026-01-01T12:00:00-00:00 2026-01-01T12:00:00+25:00 2026-01-01T24:00:00
2026-01-01T12:60:00 2026-01-01T12:00 2026-1-1T1:00:00 2026-01-1T12:00:00 20260101 90d 1y 12h 5m 1d2h 1_0d << = <<< == a=b -1 - -- --- +1 + ++1 +-1 . .. ... .5.
e5 e E1 1e 1ee5 1e5e +e5 0.0 -0.0 00.5 08.5 0_1.5 1._5 0b1.5 0x1.5 0.5e+1 _ __ a_b 1a 0a 0xdeadbeef 0xDEAD_BEEF 1st 3com 10.0.0.0/8
12:34:56:78:90:ab 00:00:00:00:00:00 1:00 1:00:00 60:00 100:00 9:9 9:09 0x1:30 1_0:30 1:3_0 hunter2 p4ssw0rd 1e1 1e01 1e-1 1.e-1 2e10 5e-324
""".split()
TEXTS = [
    "2026-01-01 12:00:00", "2026-01-01  12:00:00 Z", "2026-01-01 12:00:00 +1", "2026-01-01\t12:00:00", "2026-01-01 12:00:00.5 -01:30",
    "1 000", "1 : 30", "0 8", "true story", "null and void", "a b", "yes please", "1.5 GB", "90 d", "it's", 'say "x"', "ü", "日本", "é1", "١٢",
]


def kind_and_text(value):
    if value is None:
        return "null", "None"
    for kind, types in (("bool", bool), ("int", int), ("float", float), ("date", (datetime.date, datetime.datetime)), ("text", str)):
        if isinstance(value, types):
            return kind, str(value)
    raise AssertionError(type(value))


def row(written):
    try:
        node = yaml.compose("- " + written, Loader=yaml.SafeLoader).value[0]
    except yaml.YAMLError:
        return None
    if not isinstance(node, yaml.ScalarNode) or node.style is not None or node.value != written:
        return None
    try:
        kind, text = kind_and_text(yaml.safe_load("- " + written)[0])
    except (yaml.YAMLError, ValueError, OverflowError):
        kind, text = "error", ""
    return [written, kind, text]


def random_scalars(rng):
    alphabets = ["0123456789", "01", "01234567", "0123456789abcdef", "0123456789_", "0123456789:.", "0123456789.eE+-", "0123456789_.:-+eExb", "0123456789-T:Z ."]
    prefixes = ["", "", "-", "+", "0", "0b", "0x", "0o", ".", "1", "19", "2026-"]
    while True:
        alphabet = rng.choice(alphabets)
        body = "".join(rng.choice(alphabet) for _ in range(rng.randint(1, rng.choice([3, 6, 12, 30]))))
        yield rng.choice(prefixes) + body
        number = rng.choice([rng.random(), rng.uniform(-1e20, 1e20), rng.random() * 10 ** rng.randint(-20, 20)])
        yield repr(number)
        yield f"{rng.randint(1, 9999):04}-{rng.randint(1, 13):02}-{rng.randint(1, 31):02}"
        yield (f"{rng.randint(1, 9999):04}-{rng.randint(1, 13)}-{rng.randint(1, 31)}{rng.choice('Tt ')}{rng.randint(0, 24)}:{rng.randint(0, 60):02}:"
               f"{rng.randint(0, 60):02}{rng.choice(['', '.', '.5', '.000001', '.1234567'])}{rng.choice(['', 'Z', ' Z', '+1', '-09:30', '+00:00', ' -0'])}")


def main():
    seen, rows = set(), []

    def take(written):
        if written in seen:
            return
        seen.add(written)
        found = row(written)
        if found:
            rows.append(found)

    for written in FIXED + TEXTS:
        take(written)
    for n in range(0, 800):
        take(f"0{n}")
    for written in random_scalars(random.Random(20261127)):
        if len(rows) >= 5000:
            break
        take(written)
    path = pathlib.Path(__file__).with_name("scalars.jsonl")
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(len(rows), "scalars")


main()
