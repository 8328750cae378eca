#!/usr/bin/env python3
"""Runs a command with a server of its own: `with_server.py COMMAND...`.

SPRITES_API_URL, SPRITE_TOKEN and PUCK say where it is. Fails when the command fails or the server does not end well.
"""

import os
import subprocess
import sys

from puck_server import PUCK, Servers


def main(command: list[str]) -> int:
    servers = Servers()
    status = 1
    try:
        server = servers(options=["--idle-timeout", "10m"]).start()
        env = {**os.environ, "SPRITES_API_URL": server.url, "SPRITE_TOKEN": server.token, "PUCK": str(PUCK)}
        status = subprocess.run(command, env=env, check=False).returncode
    finally:
        servers.close(failed=status != 0)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
