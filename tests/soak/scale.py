"""How much of everything: `PUCK_SOAK=1` asks for the long form, `PUCK_SEED` for the chance of an earlier run."""

import os
import secrets
from typing import TypeVar

LONG = os.environ.get("PUCK_SOAK") == "1"
SEED = os.environ.get("PUCK_SEED") or str(secrets.randbelow(10**9))

T = TypeVar("T")


def scaled(short: T, long: T) -> T:
    """The first in `make test`, the second in `make soak`."""
    return long if LONG else short
