"""Servers of other people that must be refused."""

import subprocess

import pytest

from object_stores import ACCESS_KEY, BUCKET, SECRET_KEY, environment
from puck_server import free_port, wait_for
from tools import tool


@pytest.mark.long
def test_a_server_that_checks_and_then_writes_is_refused(servers):
    program = tool("s3s-fs", "0.14.1", "--features", "binary")
    port = free_port()
    root = servers.directory / "s3s"
    (root / BUCKET).mkdir(parents=True)
    command = [program, "--host", "127.0.0.1", "--port", str(port), "--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY, root]
    with open(servers.directory / "s3s.log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        listening = ["curl", "-s", "-o", "/dev/null", "-m", "5", f"http://127.0.0.1:{port}/"]
        wait_for("it listens", lambda: subprocess.run(listening, check=False).returncode == 0, seconds=30, pause=0.2)
        said = servers(bucket=f"s3://{BUCKET}/refused", env=environment(port)).refuses_to_start()
        assert "bucket" in said and f"s3://{BUCKET}/refused" in said, said
    finally:
        process.terminate()
        process.wait(20)
