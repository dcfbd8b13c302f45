"""The Synapse releases that judge us, and their installation.

Each release gets a virtual environment of its own.  Old releases need old companions: the pins below are
the ones with which they were seen to start on Python 3.11.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

_MIDDLE_PINS = "prometheus-client<0.22 twisted<24 attrs<24 bcrypt<4.1 pydantic<2 setuptools<80"
_OLD_PINS = (
    "pydantic<2 prometheus_client<0.17 Twisted<23 attrs<23 setuptools<70 bcrypt<4.1 jsonschema<4.18 "
    "pyOpenSSL<23 cryptography<40 service-identity<24"
)


# What the older judges do otherwise than the newest (behaviour.md, section 13 and the rules named).
_UNTIL_1_128 = {"G", "H", "P-14"}
_UNTIL_1_100 = _UNTIL_1_128 | {"J", "P-30"}


@dataclass(frozen=True)
class Release:
    version: str
    schema: int
    pins: str = ""
    defects: frozenset = frozenset()
    # Only our result is looked at, Synapse's own purge is not asked for.
    smoke_only: bool = False
    # Only its tables are looked at, of a server that was started and has nothing in it.
    catalogue_only: bool = False
    # Whether there is `/_synapse/admin/v1/rooms/…/messages`.
    admins_page: bool = True
    # Whether a shutdown has those join the new room who were only invited to the old one (seen of 1.100 and 1.128, not of 1.79 and 1.163).
    invited_join: bool = False
    # Sending is what takes the time of building a server: some 30 ms of processor each.
    big_room_messages: int = 700

    @property
    def marks_state_groups(self) -> bool:
        """Whether Synapse itself deletes the state groups that others mark (P-40)."""
        return self.schema >= 89


RELEASES = {
    release.version: release
    for release in (
        Release(
            "1.66.0", 72, _OLD_PINS, frozenset(_UNTIL_1_100), smoke_only=True,
            admins_page=False, big_room_messages=150,
        ),
        Release("1.79.0", 74, _MIDDLE_PINS, frozenset(_UNTIL_1_100)),
        Release("1.100.0", 84, _MIDDLE_PINS, frozenset(_UNTIL_1_100), invited_join=True),
        Release("1.128.0", 91, _MIDDLE_PINS, frozenset(_UNTIL_1_128), invited_join=True),
        Release("1.163.2", 94),
        Release("1.164.0rc3", 95, catalogue_only=True),
    )
}


def cache_directory() -> Path:
    """Where environments and template servers are kept between runs."""
    named = os.environ.get("ROOMKEEPER_SYNAPSE_CACHE")
    return Path(named).resolve() if named else REPOSITORY / "target" / "synapse" / "venvs"


def _answers(python: Path, version: str) -> bool:
    """Whether this environment really holds this Synapse, and all that it imports."""
    probe = "import importlib.metadata as m; import synapse.app.homeserver; print(m.version('matrix-synapse'))"
    done = subprocess.run([python, "-c", probe], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip().splitlines()[-1:] == [version]


def python_of(release: Release) -> Path:
    """The interpreter that has `release` installed; installs it first where needed."""
    home = cache_directory() / release.version
    python = home / "bin" / "python"
    # Written after the installation was tried: half an installation must not pass for a whole one.
    whole = home / "installed"
    if whole.exists() and whole.read_text() == release.pins:
        return python
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    wanted = [f"matrix-synapse=={release.version}", *release.pins.split()]
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", *wanted]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode != 0 or not _answers(python, release.version):
        raise RuntimeError(
            f"matrix-synapse {release.version} could not be installed\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
    whole.write_text(release.pins)
    return python
