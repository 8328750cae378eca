#!/usr/bin/env python3
"""Writes at a steady rate over one file, again and again, and knows what each place must hold. Runs in a sprite.

    steady.py write FILE MEGABYTES_PER_SECOND     prints the number of blocks that are durable, at each fsync; SIGTERM ends it
    steady.py check FILE BLOCKS                   fails unless what those blocks wrote is there, or a later block

Block n goes to place n modulo the file's size and begins with n and its digest; the rest does not compress.
"""

import hashlib
import os
import random
import signal
import struct
import sys
import time

BLOCK_BYTES = 1 << 20
PLACES = 1024
SYNC_SECONDS = 1.0

BODY = random.Random(4).randbytes(BLOCK_BYTES)


def block(number: int) -> bytes:
    """The bytes of a block; every page of it is different from that of another block."""
    head = struct.pack(">Q", number)
    pages = b"".join(head + BODY[start + 8 : start + 4096] for start in range(0, BLOCK_BYTES, 4096))
    return hashlib.sha256(pages).digest() + pages[32:]


def first(content: bytes) -> int:
    """The number of a block, if it is whole."""
    if len(content) != BLOCK_BYTES:
        return -1
    (number,) = struct.unpack(">Q", content[4096:4104])
    return number if content == block(number) else -1


def write(path: str, rate: str) -> None:
    """Behind the rate it goes as fast as it can, without catching up on what was missed."""
    seconds = BLOCK_BYTES / (float(rate) * 1e6)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    number, due = 0, time.monotonic()
    synced = due
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    while not ended:
        os.pwrite(descriptor, block(number), number % PLACES * BLOCK_BYTES)
        number += 1
        now = time.monotonic()
        if now - synced >= SYNC_SECONDS:
            os.fsync(descriptor)
            synced = time.monotonic()
            print(number, flush=True)
        due = max(due + seconds, now - SYNC_SECONDS)
        time.sleep(max(0, due - time.monotonic()))
    os.fsync(descriptor)
    print(number, flush=True)


def check(path: str, blocks: str) -> None:
    """What was durable is there."""
    blocks = int(blocks)
    with open(path, "rb") as file:
        for place in range(min(blocks, PLACES)):
            durable = blocks - 1 - (blocks - 1 - place) % PLACES
            file.seek(place * BLOCK_BYTES)
            found = first(file.read(BLOCK_BYTES))
            if found < durable or found % PLACES != place:
                raise SystemExit(f"wrong: place {place} holds {found}, not {durable} or a later one")
    print("right")


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](*sys.argv[2:])
