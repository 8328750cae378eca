"""An archive as somebody with bad intentions would write it: every checksum is right, and the filesystem is nonsense."""

import hashlib
import io
import json
import random
import struct
import tarfile
from pathlib import Path

HEADER = struct.Struct("<8sIIII16sQQI")
BLOCK_BYTES = 4096
RUN_BLOCKS = 16

# The superblock and the group descriptors stay, or a look at the first block would be enough.
KEPT = range(2)


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = _table()


def crc32c(data: bytes) -> int:
    """The checksum of everything in a segment."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


NONSENSE = random.Random(7).randbytes(BLOCK_BYTES)
NONSENSE_CRC = crc32c(NONSENSE)
RUN_CRCS = {count: crc32c(NONSENSE * count) for count in range(1, RUN_BLOCKS + 1)}


def segment(content: bytes) -> tuple[bytes, list[int]]:
    """The segment with nonsense in its blocks, and the places in it of those blocks."""
    magic, version, blocks, runs, zeros, volume, epoch, sequence, _ = HEADER.unpack_from(content)
    at = HEADER.size
    listed = [struct.unpack_from("<II", content, at + 8 * index) for index in range(blocks)]
    at += 8 * blocks
    gaps = content[at:at + 8 * zeros]
    at += 8 * zeros
    table = [struct.unpack_from("<III", content, at + 12 * index) for index in range(runs)]
    at += 12 * runs
    changed, new_runs, data = [], [], []
    for number, (length, codec, crc) in enumerate(table):
        of_run = range(number * RUN_BLOCKS, min(blocks, (number + 1) * RUN_BLOCKS))
        if any(listed[index][0] in KEPT for index in of_run):
            new_runs.append((length, codec, crc))
            data.append(content[at:at + length])
        else:
            for index in of_run:
                listed[index] = (listed[index][0], NONSENSE_CRC)
            changed += of_run
            new_runs.append((len(of_run) * BLOCK_BYTES, 0, RUN_CRCS[len(of_run)]))
            data.append(NONSENSE * len(of_run))
        at += length
    tables = b"".join(struct.pack("<II", *entry) for entry in listed) + gaps
    tables += b"".join(struct.pack("<III", *run) for run in new_runs)
    front = HEADER.pack(magic, version, blocks, runs, zeros, volume, epoch, sequence, 0)[:-4]
    return front + struct.pack("<I", crc32c(front + tables)) + tables + b"".join(data), changed


def rows(content: bytes, changed: set[tuple[int, int]]) -> bytes:
    """The rows with the checksums of the nonsense."""
    content = bytearray(content)
    at = 0
    while at < len(content):
        _, _, length = struct.unpack_from("<III", content, at)
        at += 12
        end = at + length
        while at < end:
            _, count, number = struct.unpack_from("<HHI", content, at)
            at += 8
            if number == 0:
                continue
            [index] = struct.unpack_from("<I", content, at)
            at += 4
            for place in range(index, index + count):
                if (number, place) in changed:
                    struct.pack_into("<I", content, at, NONSENSE_CRC)
                at += 4
    return bytes(content)


def archive(path: Path) -> bytes:
    """The archive with a filesystem that is nonsense, sealed by nobody in particular."""
    changed: set[tuple[int, int]] = set()
    out, digest = io.BytesIO(), hashlib.sha256()
    with tarfile.open(path) as source, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as target:
        for member in source:
            content = source.extractfile(member).read()
            if member.name.startswith("segments/"):
                content, places = segment(content)
                changed |= {(int(member.name.split("/")[1]), place) for place in places}
            elif member.name.startswith("rows/"):
                content = rows(content, changed)
            if member.name.endswith(".seal"):
                content = json.dumps({"sha256": digest.hexdigest(), "mac": None}).encode()
            else:
                for part in (member.name.encode(), content):
                    digest.update(struct.pack("<Q", len(part)) + part)
            sealed = tarfile.TarInfo(member.name)
            sealed.size = len(content)
            target.addfile(sealed, io.BytesIO(content))
    return out.getvalue()
