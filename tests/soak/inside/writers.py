#!/usr/bin/env python3
"""Writers that know what they have written. Runs in a sprite.

    writers.py write KIND PLACE     writes without an end; prints the number of each step once it is durable
    writers.py check KIND PLACE     prints the number of the last step that is there; fails if anything is not as it was written

KIND is `sqlite-wal`, `sqlite-truncate`, `sqlite-delete`, `git` or `postgres`. Step n is the same whenever it is written.
"""

import hashlib
import os
import random
import sqlite3
import subprocess
import sys
from itertools import count

# A database keeps so many steps; older ones are deleted, so that pages are freed and used again.
STEPS_KEPT = 100
PARTS_MAX = 12
PART_BYTES_MAX = 5000

GIT_FILES_MAX = 8
GIT_FILE_BYTES_MAX = 30_000

ACCOUNTS = 1000


def parts(step: int) -> list[bytes]:
    """What a step writes."""
    chance = random.Random(step)
    return [chance.randbytes(chance.randint(1, PART_BYTES_MAX)) for _ in range(chance.randint(1, PARTS_MAX))]


def chain(before: str, contents: list[bytes]) -> str:
    """A digest of everything up to here."""
    digest = hashlib.sha256(before.encode())
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def fail(why: str) -> None:
    """Says what is wrong."""
    raise SystemExit(f"wrong: {why}")


class Sqlite:
    """Rows in one table, and the digest of all that ever were in another; both change in one transaction."""

    # In the mode `delete` a commit is the removal of a file, which only `EXTRA` makes durable.
    SYNCHRONOUS = {"wal": "FULL", "truncate": "FULL", "delete": "EXTRA"}

    def __init__(self, place: str, mode: str):
        os.makedirs(place, exist_ok=True)
        self.database = sqlite3.connect(os.path.join(place, "steps.db"), isolation_level=None, timeout=60)
        got = self.database.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0]
        if got != mode:
            fail(f"journal mode {got}")
        self.database.execute(f"PRAGMA synchronous = {self.SYNCHRONOUS[mode]}")
        self.database.execute("CREATE TABLE IF NOT EXISTS part (step INTEGER, number INTEGER, data BLOB, PRIMARY KEY (step, number))")
        self.database.execute("CREATE TABLE IF NOT EXISTS head (step INTEGER, chain TEXT)")

    def head(self) -> tuple[int, str]:
        """The last step and the digest there."""
        return self.database.execute("SELECT step, chain FROM head").fetchone() or (0, "")

    def write(self, step: int, before: str) -> str:
        """One transaction."""
        contents = parts(step)
        after = chain(before, contents)
        execute = self.database.execute
        execute("BEGIN IMMEDIATE")
        execute("DELETE FROM part WHERE step <= ?", (step - STEPS_KEPT,))
        self.database.executemany("INSERT INTO part VALUES (?, ?, ?)", [(step, n, data) for n, data in enumerate(contents)])
        execute("DELETE FROM head")
        execute("INSERT INTO head VALUES (?, ?)", (step, after))
        execute("COMMIT")
        return after

    def run(self) -> None:
        """Steps from the last one on."""
        step, digest = self.head()
        for step in count(step + 1):
            digest = self.write(step, digest)
            print(step, flush=True)

    def check(self) -> int:
        """Everything that is kept is what was written."""
        if (said := self.database.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
            fail(f"integrity check: {said}")
        last, digest = self.head()
        expected = ""
        for step in range(1, last + 1):
            expected = chain(expected, parts(step))
        if last and digest != expected:
            fail(f"the digest at step {last}")
        for step in range(max(1, last - STEPS_KEPT + 1), last + 1):
            rows = self.database.execute("SELECT data FROM part WHERE step = ? ORDER BY number", (step,)).fetchall()
            if [data for (data,) in rows] != parts(step):
                fail(f"the rows of step {step}")
        if self.database.execute("SELECT count(*) FROM part WHERE step > ? OR step <= ?", (last, last - STEPS_KEPT)).fetchone()[0]:
            fail("rows of steps that are not there")
        return last


class Git:
    """Commits, each with its number as its message."""

    def __init__(self, place: str):
        self.place = place
        if not os.path.isdir(os.path.join(place, ".git")) or self.git("rev-parse", "--git-dir", check=False) is None:
            subprocess.run(["git", "init", "--quiet", place], check=True)
        # No reference reaches the disk before what it refers to.
        for key, value in {"core.fsync": "all", "user.name": "W", "user.email": "w@example.com", "gc.auto": "0"}.items():
            # On a full disk nothing can be written, and nothing has to be.
            if (self.git("config", "--get", key, check=False) or "").strip() != value:
                self.git("config", key, value)

    def git(self, *arguments: str, check: bool = True) -> str | None:
        """What a command of git says, or None if it fails."""
        done = subprocess.run(["git", "-C", self.place, *arguments], capture_output=True, text=True, check=False)
        if done.returncode and check:
            fail(f"git {' '.join(arguments)}: {done.stdout} {done.stderr}")
        return None if done.returncode else done.stdout

    def head(self) -> int:
        """The number of the last commit."""
        subject = self.git("log", "-1", "--format=%s", check=False)
        return int(subject) if subject else 0

    def run(self) -> None:
        """Commits from the last one on. A crash leaves locks, which is for the user to clear."""
        for directory, _, names in os.walk(os.path.join(self.place, ".git")):
            for name in names:
                if name.endswith(".lock"):
                    os.unlink(os.path.join(directory, name))
        last = self.head()
        if last:
            self.git("reset", "--hard", "--quiet")
        for step in count(last + 1):
            for name, content in self.files(step).items():
                path = os.path.join(self.place, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    file.write(content)
            self.git("add", "--all")
            self.git("commit", "--quiet", "--message", str(step))
            if step % 20 == 0:
                self.git("repack", "-d", "--quiet")
            # Git syncs files but not the renames that put them in place.
            subprocess.run(["sync", "-f", self.place], check=True)
            print(step, flush=True)

    @staticmethod
    def files(step: int) -> dict[str, bytes]:
        """The files that a commit changes."""
        chance = random.Random(step)
        return {
            f"d{chance.randint(0, 9)}/f{number}": chance.randbytes(chance.randint(1, GIT_FILE_BYTES_MAX))
            for number in range(chance.randint(1, GIT_FILES_MAX))
        }

    def check(self) -> int:
        """The repository is whole, and the history is the one that was written."""
        self.git("fsck", "--full", "--strict", "--no-dangling")
        last = self.head()
        subjects = (self.git("log", "--format=%s", check=False) or "").split()
        if subjects != [str(step) for step in range(last, 0, -1)]:
            fail(f"the history is {subjects[:5]} ...")
        expected = {}
        for step in range(1, last + 1):
            expected.update(self.files(step))
        for name, content in expected.items():
            blob = subprocess.run(["git", "-C", self.place, "show", f"HEAD:{name}"], capture_output=True, check=False)
            if blob.stdout != content:
                fail(f"{name} at commit {last}")
        return last


class Postgres:
    """Money that moves between accounts: each step is one transaction with a line in a history."""

    def __init__(self, _place: str):
        import psycopg2

        subprocess.run(["sudo", "pg_ctlcluster", "15", "main", "start"], check=False, capture_output=True, timeout=120)
        self.connection = psycopg2.connect("dbname=steps")
        with self.connection, self.connection.cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance bigint NOT NULL, filler text)")
            cursor.execute("CREATE TABLE IF NOT EXISTS history (step int PRIMARY KEY, source int, target int, amount int, digest text)")
            cursor.execute("SELECT count(*) FROM account")
            if cursor.fetchone()[0] == 0:
                cursor.execute("INSERT INTO account SELECT n, 0, repeat('x', 80) FROM generate_series(0, %s) n", (ACCOUNTS - 1,))

    @staticmethod
    def move(step: int) -> tuple[int, int, int, str]:
        """What a step moves."""
        chance = random.Random(step)
        source, target = chance.sample(range(ACCOUNTS), 2)
        amount = chance.randint(1, 1000)
        return source, target, amount, hashlib.sha256(f"{step} {source} {target} {amount}".encode()).hexdigest()

    def run(self) -> None:
        """Steps from the last one on."""
        with self.connection, self.connection.cursor() as cursor:
            cursor.execute("SELECT coalesce(max(step), 0) FROM history")
            last = cursor.fetchone()[0]
        for step in count(last + 1):
            source, target, amount, digest = self.move(step)
            with self.connection, self.connection.cursor() as cursor:
                cursor.execute("UPDATE account SET balance = balance - %s WHERE id = %s", (amount, source))
                cursor.execute("UPDATE account SET balance = balance + %s WHERE id = %s", (amount, target))
                cursor.execute("INSERT INTO history VALUES (%s, %s, %s, %s, %s)", (step, source, target, amount, digest))
            print(step, flush=True)

    def check(self) -> int:
        """The history has no hole, the balances are its sum, and Postgres finds nothing wrong with itself."""
        with self.connection, self.connection.cursor() as cursor:
            cursor.execute("SELECT step, source, target, amount, digest FROM history ORDER BY step")
            history = cursor.fetchall()
            cursor.execute("SELECT id, balance FROM account")
            balances = dict(cursor.fetchall())
        expected = dict.fromkeys(range(ACCOUNTS), 0)
        for number, (step, *moved) in enumerate(history, 1):
            if step != number or tuple(moved) != self.move(step):
                fail(f"step {step} of the history")
            source, target, amount, _ = moved
            expected[source] -= amount
            expected[target] += amount
        if balances != expected:
            fail("the balances are not the history's sum")
        checked = subprocess.run(["/usr/lib/postgresql/15/bin/pg_amcheck", "--install-missing", "--heapallindexed", "steps"], capture_output=True, text=True, check=False)
        if checked.returncode:
            fail(f"pg_amcheck: {checked.stdout} {checked.stderr}")
        return len(history)


def main(verb: str, kind: str, place: str) -> None:
    name, _, mode = kind.partition("-")
    writer = {"sqlite": lambda: Sqlite(place, mode), "git": lambda: Git(place), "postgres": lambda: Postgres(place)}[name]()
    if verb == "write":
        writer.run()
    else:
        print(writer.check(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
