#!/usr/bin/env python3
"""Runs tests whose servers keep their buckets in an S3 server: `with_seaweedfs.py COMMAND...`. Fails when the command fails."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from object_stores import BUCKET, SeaweedFS, environment


def main(command: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="puck-seaweed-") as directory:
        seaweed = SeaweedFS(Path(directory) / "data")
        try:
            env = {**os.environ, **environment(seaweed.s3_port), "PUCK_TEST_BUCKETS": f"s3://{BUCKET}"}
            return subprocess.run(command, env=env, check=False).returncode
        finally:
            seaweed.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
