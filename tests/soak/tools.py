"""Programs that the soak tests bring, by cargo, once."""

import subprocess
from pathlib import Path

from puck_server import ROOT

TOOLS = ROOT / "target/tools"

BUILD_SECONDS_MAX = 1800


def tool(crate: str, version: str, *options: str, binary: str | None = None) -> Path:
    """The program of a crate, built if it is missing."""
    path = TOOLS / "bin" / (binary or crate)
    if not path.exists():
        command = ["cargo", "install", "--locked", "--quiet", "--root", TOOLS, crate, "--version", version, *options]
        subprocess.run(command, check=True, timeout=BUILD_SECONDS_MAX)
    return path
