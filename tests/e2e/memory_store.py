"""A bucket in memory that speaks as much of S3 as a server asks for, and breaks its promises on command.

`fault` is None, "ignores conditions": a conditional write is taken as a plain one, "checks then writes": two writers that
meet both win, or "serves others' bytes": what is read is not what was written.
"""

import hashlib
import re
import threading
import time
from email.utils import formatdate
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from http_service import HttpService, Request

# Between check and write of a server that does not do both at once. A race of a few requests fits into it.
GAP_SECONDS = 0.05

LIST_KEYS_MAX = 1000


class MemoryStore:
    """The server; each instance has a port and one namespace of objects."""

    def __init__(self, fault: str | None = None):
        self.fault = fault
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.lock = threading.Lock()
        self.service = HttpService(self.handle)
        self.port = self.service.port

    def handle(self, request: Request) -> None:
        """Answers a request."""
        body = request.body()
        parts = urlsplit(request.path)
        _, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        conditions = {name: request.headers[name] for name in ("If-None-Match", "If-Match") if name in request.headers}
        if "uploads" in query or "uploadId" in query:
            status, headers, content = self.multipart(request.command, key, query, body)
        elif request.command == "PUT":
            status, headers, content = self.put(key, body, conditions)
        elif request.command == "DELETE":
            status, headers, content = self.delete(key)
        elif request.command == "POST" and "delete" in query:
            status, headers, content = self.delete_many(body.decode())
        elif not key:
            status, headers, content = self.list(query)
        else:
            status, headers, content = self.get(key, request.headers.get("Range"))
        request.answer(status, headers, content)

    def put(self, key: str, body: bytes, conditions: dict[str, str]) -> tuple[int, dict, bytes]:
        """A write, conditional or not."""
        if self.fault == "ignores conditions":
            conditions = {}
        if self.fault == "checks then writes":
            with self.lock:
                refused = self._refused(key, conditions)
            time.sleep(GAP_SECONDS)
            if refused:
                return failure(412, "PreconditionFailed")
            conditions = {}
        with self.lock:
            if self._refused(key, conditions):
                return failure(412, "PreconditionFailed")
            self.objects[key] = body
        return 200, {"ETag": etag(body)}, b""

    def _refused(self, key: str, conditions: dict[str, str]) -> bool:
        found = self.objects.get(key)
        wanted = conditions.get("If-Match")
        return ("If-None-Match" in conditions and found is not None) or (
            wanted is not None and (found is None or etag(found) != wanted)
        )

    def get(self, key: str, ranged: str | None) -> tuple[int, dict, bytes]:
        """The whole of an object, or a range."""
        with self.lock:
            content = self.objects.get(key)
        if content is None:
            return failure(404, "NoSuchKey")
        if self.fault == "serves others' bytes":
            content = bytes(255 - byte for byte in content)
        headers = {"ETag": etag(content), "Last-Modified": formatdate(usegmt=True), "Accept-Ranges": "bytes"}
        if not ranged:
            return 200, headers, content
        first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", ranged).groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last), len(content) - 1) if first and last else len(content) - 1
        if start > end:
            return failure(416, "InvalidRange")
        return 206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"}, content[start : end + 1]

    def delete(self, key: str) -> tuple[int, dict, bytes]:
        """One object, there or not."""
        with self.lock:
            self.objects.pop(key, None)
        return 204, {}, b""

    def delete_many(self, document: str) -> tuple[int, dict, bytes]:
        """Those of a document."""
        keys = [unquote(key) for key in re.findall(r"<Key>(.*?)</Key>", document)]
        for key in keys:
            self.delete(key)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return 200, {"Content-Type": "application/xml"}, f"<DeleteResult>{deleted}</DeleteResult>".encode()

    def multipart(self, method: str, key: str, query: dict[str, str], body: bytes) -> tuple[int, dict, bytes]:
        """Uploads in parts, kept beside the objects until they are complete."""
        upload, xml = query.get("uploadId", ""), {"Content-Type": "application/xml"}
        with self.lock:
            if "uploads" in query:
                upload = f"upload-{len(self.uploads)}"
                self.uploads[upload] = {}
                text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                return 200, xml, text.encode()
            if upload not in self.uploads:
                return failure(404, "NoSuchUpload")
            parts = self.uploads[upload]
            if method == "PUT":
                parts[int(query["partNumber"])] = body
                return 200, {"ETag": etag(body)}, b""
            del self.uploads[upload]
            if method == "DELETE":
                return 204, {}, b""
            whole = self.objects[key] = b"".join(parts[number] for number in sorted(parts))
        text = f"<CompleteMultipartUploadResult><Key>{escape(key)}</Key><ETag>{escape(etag(whole))}</ETag></CompleteMultipartUploadResult>"
        return 200, xml, text.encode()

    def list(self, query: dict[str, str]) -> tuple[int, dict, bytes]:
        """Version 2 of a list, in pages."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        most = min(int(query.get("max-keys", LIST_KEYS_MAX)), LIST_KEYS_MAX)
        with self.lock:
            found = {key: content for key, content in self.objects.items() if key.startswith(prefix)}
        entries: dict[str, str] = {}
        for key in sorted(found):
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                common = prefix + rest.split(delimiter)[0] + delimiter
                entries[common] = f"<CommonPrefixes><Prefix>{escape(common)}</Prefix></CommonPrefixes>"
            else:
                entries[key] = (
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(found[key])}</Size><ETag>{escape(etag(found[key]))}</ETag>"
                    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                )
        names = [name for name in sorted(entries) if name > after]
        page, more = names[:most], len(names) > most
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        text = "".join(entries[name] for name in page)
        listed = f"<ListBucketResult><KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>{token}{text}</ListBucketResult>"
        return 200, {"Content-Type": "application/xml"}, listed.encode()

    def close(self) -> None:
        """Ends it."""
        self.service.close()


def etag(content: bytes) -> str:
    """As S3 makes it."""
    return f'"{hashlib.md5(content).hexdigest()}"'


def failure(status: int, code: str) -> tuple[int, dict, bytes]:
    """An S3 error document."""
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return status, {"Content-Type": "application/xml"}, text.encode()
