"""Visits and their answers in SQLite: an answer that was acknowledged is on the disk, and is there once.

Write-ahead log with synchronous=FULL: a commit returns after fsync, so kill -9 or a power cut loses nothing that a
visitor was told is kept. An answer carries the revision that its page showed (0: none yet): a form sent twice, or from
a second tab that is behind, changes nothing. Several servers may share the file on one machine, not over NFS, where
the log does not work. No name and no address is stored; of a visit's token only the SHA-256.
"""

import hashlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError

EXPERIENCES = ("lay", "biologist", "pathologist")
SURENESS = ("guess", "fairly sure", "certain")  # 1, 2, 3
BUSY_SECONDS = 10  # to wait for another server's write

SCHEMA = """
CREATE TABLE IF NOT EXISTS quiz (digest TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS visits (
    id INTEGER PRIMARY KEY, visitor INTEGER NOT NULL, token TEXT NOT NULL UNIQUE, code TEXT UNIQUE, experience TEXT,
    n INTEGER NOT NULL,
    started REAL NOT NULL, finished REAL,
    hits INTEGER, signals INTEGER, false_alarms INTEGER, noises INTEGER
);
CREATE TABLE IF NOT EXISTS shown (
    visit INTEGER NOT NULL REFERENCES visits, position INTEGER NOT NULL, tile TEXT NOT NULL,
    PRIMARY KEY (visit, position), UNIQUE (visit, tile)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    visit INTEGER NOT NULL, position INTEGER NOT NULL, says_real INTEGER NOT NULL CHECK (says_real IN (0, 1)),
    sure INTEGER NOT NULL CHECK (sure BETWEEN 1 AND 3), quality INTEGER CHECK (quality BETWEEN 1 AND 5),
    answered REAL NOT NULL, revision INTEGER NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (visit, position), FOREIGN KEY (visit, position) REFERENCES shown
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS finished ON visits (finished) WHERE finished IS NOT NULL;
"""
# visitor: the number of the first visit from the same browser; answered: Unix time; seconds: since the visit's previous
# answer, or its start; hits ...: of a finished visit


@dataclass(frozen=True)
class Visit:
    """One visitor's go: n tiles, of which `answered` have an answer; `code`: a study's participant.

    `visitor`: the number of the first visit from the same browser, so that who comes again is one person.
    """

    id: int
    visitor: int
    code: str | None
    experience: str | None
    n: int
    finished: float | None
    answered: int

    @property
    def current(self) -> int:
        """The position of the first tile without answer, from 1; n where all have one."""
        return min(self.answered + 1, self.n)


@dataclass(frozen=True)
class Answer:
    """What a visitor says of a tile: real or not, how sure (1 to 3), its quality (1 to 5) or None."""

    says_real: bool
    sure: int
    quality: int | None = None


@dataclass(frozen=True)
class Tally:
    """A finished visit's counts: signals: synthetic tiles; hits: those called so; false alarms: real ones called so."""

    hits: int
    signals: int
    false_alarms: int
    noises: int

    @property
    def right(self) -> int:
        """How many answers are right."""
        return self.hits + self.noises - self.false_alarms

    @property
    def n(self) -> int:
        """How many tiles there were."""
        return self.signals + self.noises


class Store:
    """The answers of one quiz; may be used by many threads, each of which gets a connection of its own."""

    def __init__(self, path: str | Path, digest: str, is_real: Mapping[str, bool]) -> None:
        """Open or create. InputError where the file holds another quiz's answers, or is no database.

        `digest`: the quiz's; `is_real`: tile id -> truth, to count when a visit ends.
        """
        self.path = Path(path)
        self.is_real = is_real
        self._local = threading.local()
        self._writing = threading.Lock()
        try:
            self._connection().executescript(SCHEMA)
            with self._transaction() as db:
                found = db.execute("SELECT digest FROM quiz").fetchone()
                if found is None:
                    db.execute("INSERT INTO quiz VALUES (?)", (digest,))
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path}: not the answers of a quiz ({error}); move the file away, or mend it") from None
        if found is not None and found[0] != digest:
            raise InputError(f"{path}: holds the answers of another quiz; move the file away, or restore quiz.json")

    def start(
        self,
        tiles: Sequence[str],
        experience: str | None = None,
        code: str | None = None,
        visitor: int | None = None,
    ) -> tuple[Visit, str]:
        """Begin a visit of these tiles; return it with its token. A code that is known goes on with its own visit.

        Its earlier token stops working: a participant is in one browser at a time. `visitor`: whose visit it is, None:
        a new one's.
        """
        token = secrets.token_urlsafe(32)
        with self._transaction() as db:
            row = db.execute("SELECT id FROM visits WHERE code = ?", (code,)).fetchone() if code else None
            if row:
                db.execute("UPDATE visits SET token = ? WHERE id = ?", (_hashed(token), row[0]))
            else:
                row = db.execute(
                    "INSERT INTO visits (visitor, token, code, experience, n, started) VALUES"
                    " (coalesce(?, (SELECT coalesce(max(id), 0) + 1 FROM visits)), ?, ?, ?, ?, ?) RETURNING id",
                    (visitor, _hashed(token), code, experience, len(tiles), time.time()),
                ).fetchone()
                rows = [(row[0], position, tile) for position, tile in enumerate(tiles, 1)]
                db.executemany("INSERT INTO shown VALUES (?, ?, ?)", rows)
            visit = _visit(db, "visits.id = ?", row[0])
        return visit, token

    def visit(self, token: str) -> Visit | None:
        """Return the visit of a token, None where there is none."""
        return _visit(self._connection(), "token = ?", _hashed(token))

    def visit_by_id(self, number: int) -> Visit | None:
        """Return a visit by its number, None where there is none."""
        return _visit(self._connection(), "visits.id = ?", number)

    def tile(self, visit: Visit, position: int) -> str | None:
        """Return the id of a visit's tile, None beyond its tiles."""
        query = "SELECT tile FROM shown WHERE visit = ? AND position = ?"
        row = self._connection().execute(query, (visit.id, position)).fetchone()
        return row[0] if row else None

    def seen(self, visitor: int) -> set[str]:
        """Return the tiles that a visitor was shown in any visit."""
        query = "SELECT tile FROM shown JOIN visits ON visits.id = visit WHERE visitor = ?"
        return {row[0] for row in self._connection().execute(query, (visitor,))}

    def answer_at(self, visit: Visit, position: int) -> tuple[Answer, int] | None:
        """Return an answer and its revision, None where there is none yet."""
        query = "SELECT says_real, sure, quality, revision FROM answers WHERE visit = ? AND position = ?"
        row = self._connection().execute(query, (visit.id, position)).fetchone()
        return (Answer(bool(row[0]), row[1], row[2]), row[3]) if row else None

    def answer(self, visit: Visit, position: int, answer: Answer, revision: int, may_change: bool) -> bool:
        """Keep an answer, fsynced; return whether it was taken.

        It is not where `revision` is not that of the answer at hand (0: none), so a form sent twice counts once; where
        there is one and it may not be changed; where tiles before it have none; or where the visit has ended.
        """
        now = time.time()
        with self._transaction() as db:
            fresh = _visit(db, "visits.id = ?", visit.id)
            query = "SELECT revision FROM answers WHERE visit = ? AND position = ?"
            row = db.execute(query, (visit.id, position)).fetchone()
            before = row[0] if row else 0
            in_turn = 1 <= position <= fresh.current
            if fresh.finished or not in_turn or revision != before or (before and not may_change):
                return False
            values = (int(answer.says_real), answer.sure, answer.quality, now)
            if before:
                db.execute(
                    "UPDATE answers SET says_real = ?, sure = ?, quality = ?, answered = ?, revision = revision + 1"
                    " WHERE visit = ? AND position = ?",
                    (*values, visit.id, position),
                )
            else:
                last = "SELECT coalesce((SELECT max(answered) FROM answers WHERE visit = visits.id), started)"
                (since,) = db.execute(f"{last} FROM visits WHERE id = ?", (visit.id,)).fetchone()
                row = (visit.id, position, *values, 1, max(now - since, 0.0))  # a clock may be set back
                db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
                if fresh.answered + 1 == fresh.n:
                    self._finish(db, visit.id, now)
        return True

    def tally(self, visit: Visit) -> Tally:
        """Return the counts of a finished visit."""
        query = "SELECT hits, signals, false_alarms, noises FROM visits WHERE id = ?"
        return Tally(*self._connection().execute(query, (visit.id,)).fetchone())

    def tallies(self) -> list[tuple[str | None, Tally, int]]:
        """Return (experience, counts, how many) of all finished visits, equal ones together."""
        query = (
            "SELECT experience, hits, signals, false_alarms, noises, count(*) FROM visits WHERE finished IS NOT NULL"
            " GROUP BY experience, hits, signals, false_alarms, noises"
        )
        return [(row[0], Tally(*row[1:5]), row[5]) for row in self._connection().execute(query)]

    def answers(self, visit: Visit) -> list[tuple[int, str, Answer]]:
        """Return (position, tile, answer) of a visit, in the order shown."""
        query = (
            "SELECT position, tile, says_real, sure, quality FROM answers JOIN shown USING (visit, position)"
            " WHERE visit = ? ORDER BY position"
        )
        rows = self._connection().execute(query, (visit.id,))
        return [(row[0], row[1], Answer(bool(row[2]), row[3], row[4])) for row in rows]

    def export(self) -> Iterator[dict]:
        """Yield every answer as a row of names and values, by visit and position."""
        query = (
            "SELECT visit, visitor, code, experience, finished IS NOT NULL AS finished, position, tile, says_real,"
            " sure, quality, seconds, revision, answered FROM answers JOIN shown USING (visit, position)"
            " JOIN visits ON visits.id = visit ORDER BY visit, position"
        )
        rows = self._connection().execute(query)
        names = [column[0] for column in rows.description]
        return (dict(zip(names, row, strict=True)) for row in rows)

    def _finish(self, db: sqlite3.Connection, visit: int, now: float) -> None:
        query = "SELECT tile, says_real FROM answers JOIN shown USING (visit, position) WHERE visit = ?"
        given = [(self.is_real[tile], bool(says_real)) for tile, says_real in db.execute(query, (visit,))]
        signals = [says for real, says in given if not real]
        noises = [says for real, says in given if real]
        counts = (signals.count(False), len(signals), noises.count(False), len(noises))
        db.execute(
            "UPDATE visits SET finished = ?, hits = ?, signals = ?, false_alarms = ?, noises = ? WHERE id = ?",
            (now, *counts, visit),
        )

    def _connection(self) -> sqlite3.Connection:
        """Return this thread's connection."""
        db = getattr(self._local, "db", None)
        if db is None:
            db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            self._local.db = db
        return db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection that may write; all or nothing. One thread at a time, so that none waits in SQLite."""
        db = self._connection()
        with self._writing:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _visit(db: sqlite3.Connection, where: str, value: object) -> Visit | None:
    """Return the visit that `where`, a condition of ours with one placeholder, finds."""
    query = (
        "SELECT id, visitor, code, experience, n, finished, (SELECT count(*) FROM answers WHERE visit = visits.id)"
        f" FROM visits WHERE {where}"
    )
    row = db.execute(query, (value,)).fetchone()
    return Visit(*row) if row else None
