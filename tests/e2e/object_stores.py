"""S3 servers for the tests: SeaweedFS, and a proxy in front of it that misbehaves on command."""

import http.client
import json
import subprocess
import threading
from collections import Counter
from pathlib import Path

from http_service import HttpService, Request
from puck_server import ROOT, free_port, wait_for

WEED = ROOT / ".venv/bin/weed"
BUCKET = "sprites"
ACCESS_KEY = "puck-test-access-key"
SECRET_KEY = "puck-test-secret-key-that-no-sprite-may-see"

# SeaweedFS needs a while until it has a volume to write to.
SETTLE_SECONDS_MAX = 90

# Longer than any client waits for an answer.
HANG_SECONDS_MAX = 60


class SeaweedFS:
    """A `weed server -s3` with one empty bucket."""

    def __init__(self, directory: Path, everybody_reads: bool = False):
        self.directory = directory
        directory.mkdir(parents=True)
        config = directory / "s3.json"
        identity = {
            "name": "puck",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        identities = [identity, {"name": "anonymous", "actions": ["Read"]}] if everybody_reads else [identity]
        config.write_text(json.dumps({"identities": identities}))
        # Each HTTP port of SeaweedFS brings a gRPC port; both are chosen, or two servers on a host would meet.
        ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
        grpc = {f"{name}.port.grpc": free_port() for name in ports}
        self.s3_port = ports["s3"]
        self.master = f"127.0.0.1:{ports['master']}.{grpc['master.port.grpc']}"
        options = [f"-{name}.port={port}" for name, port in ports.items()]
        options += [f"-{name}={port}" for name, port in grpc.items()]
        self.log = open(directory / "log", "wb")
        self.process = subprocess.Popen(
            [WEED, "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={config}",
             "-master.volumeSizeLimitMB=512", "-volume.max=200",
             "-s3.port.iceberg=0", "-s3.port.lance=0", *options],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )
        wait_for("SeaweedFS takes a bucket", self._make_bucket, SETTLE_SECONDS_MAX, pause=0.5)

    def _make_bucket(self) -> bool:
        assert self.process.poll() is None, (self.directory / "log").read_text()[-3000:]
        command = [WEED, "shell", f"-master={self.master}"]
        try:
            made = subprocess.run(
                command, input=f"s3.bucket.create -name {BUCKET}\ns3.bucket.list\n", capture_output=True, text=True, timeout=15, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        if BUCKET not in made.stdout:
            return False
        # It has settled when it keeps an object.
        return self.put("settled", b"x")

    def put(self, key: str, content: bytes) -> bool:
        """Writes an object."""
        command = ["curl", "-sf", "-m", "60", "-T", "-", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", f"{ACCESS_KEY}:{SECRET_KEY}"]
        command.append(f"http://127.0.0.1:{self.s3_port}/{BUCKET}/{key}")
        return subprocess.run(command, input=content, check=False, timeout=75, capture_output=True).returncode == 0

    def close(self) -> None:
        """Ends it."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def environment(port: int) -> dict[str, str]:
    """The usual variables for an S3 server on a port of this host."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    }


class FaultyProxy:
    """Passes requests on to an S3 server, or answers with a fault.

    `fault` is None, a status such as 403 or 500, "hang": the request is taken and not answered for as long as the fault lasts, or
    "drop": the connection is closed.
    """

    def __init__(self, upstream: int):
        self._fault: int | str | None = None
        self.faults = 0
        # Requests by method, and the bytes of objects both ways.
        self.counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._over = threading.Event()
        self.upstream = upstream
        self.service = HttpService(self.handle)
        self.port = self.service.port

    def handle(self, request: Request) -> None:
        """Passes a request on, unless something is wrong."""
        body = request.body()
        self.count(request.command, 1)
        self.count("bytes put", len(body))
        fault, over = self.fault, self._over
        if fault == "hang":
            self.faults += 1
            # Thousands may hang, and their bodies are of no use any more.
            del body
            over.wait(HANG_SECONDS_MAX)
            request.close_connection = True
        elif fault == "drop":
            self.faults += 1
            request.close_connection = True
        elif fault:
            self.faults += 1
            request.answer(fault, {"Content-Type": "application/xml"}, self.error(fault))
        else:
            self.pass_on(request, body)

    def pass_on(self, request: Request, body: bytes) -> None:
        """Asks the server, and answers what it answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        try:
            # The signature covers the Host header, so that goes through as it came.
            connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            got = connection.getresponse()
            data = got.read()
            self.count("bytes got", len(data))
            headers = {k: v for k, v in got.getheaders() if k.lower() not in ("connection", "transfer-encoding", "content-length")}
            length = got.getheader("Content-Length") if request.command == "HEAD" else None
            request.answer(got.status, headers, data, length)
        finally:
            connection.close()

    def count(self, what: str, number: int) -> None:
        """Adds to what was counted."""
        with self._counting:
            self.counts[what] += number

    @property
    def fault(self) -> int | str | None:
        """What is wrong with it."""
        return self._fault

    @fault.setter
    def fault(self, fault: int | str | None) -> None:
        self._fault = fault
        hanging, self._over = self._over, threading.Event()
        hanging.set()

    @staticmethod
    def error(status: int) -> bytes:
        """An S3 error document."""
        code = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}[status]
        return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>'.encode()

    def close(self) -> None:
        """Lets everything that hangs go, and ends."""
        self.fault = None
        self.service.close()
