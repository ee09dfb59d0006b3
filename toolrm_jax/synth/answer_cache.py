"""What endpoints have answered, on disk: a run that was killed goes on without asking twice.

    key(model, request, sample)  ->  {"message": {...}, "finish_reason", "tokens"}  what was said
                                     {"refused": "status 400: ..."}                 never will be

One SQLite file. An answer is in it, whole and synced, before anything is done with it; entries are
added and not changed. The raw message is kept, so that a better parser needs no new answers. What
it took to get them (requests, faults) is counted beside them, over all runs. Any number of runs may
share a file on a local disk.

    with AnswerCache("answers.sqlite") as cache:
        cache.get(key(...)) or cache.put(key(...), model, entry)
"""

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

from toolrm_jax.errors import InputError
from toolrm_jax.paths import is_remote
from toolrm_jax.splits import digest

_FORMAT = 1  # raise it when what is written changes


def key(model: str, request: dict[str, Any], sample: int) -> str:
    """What tells one question from another; the server's address is not part of it."""
    return digest(model, json.dumps(request, sort_keys=True, ensure_ascii=False), sample)


class AnswerCache:
    """Answers by key. May be used from several threads.

    Raises:
      InputError: the file cannot be used; the message says why.
    """

    def __init__(self, path: str | os.PathLike[str]):
        if is_remote(path):
            raise InputError(
                f"The answers' cache is {os.fspath(path)}, in a bucket: SQLite needs a local disk. "
                "Name a local file; it may be copied to the bucket afterwards."
            )
        self._lock = threading.Lock()
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
            self._open(os.fspath(path))
        except (sqlite3.Error, OSError) as error:
            raise InputError(
                f"The answers' cache {os.fspath(path)} cannot be used: {error}. Expected an SQLite "
                "file that an earlier run wrote; name another one to begin anew."
            ) from error

    def _open(self, path: str) -> None:
        self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=FULL")
            found = self._file.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, _FORMAT):
                raise sqlite3.DatabaseError(f"it has format {found}, this version knows {_FORMAT}")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS answers "
                "(key TEXT PRIMARY KEY, model TEXT NOT NULL, entry TEXT NOT NULL) WITHOUT ROWID"
            )
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS events "
                "(model TEXT, what TEXT, number INT, PRIMARY KEY (model, what)) WITHOUT ROWID"
            )
            self._file.execute(f"PRAGMA user_version={_FORMAT}")
        except sqlite3.Error:
            self._file.close()
            raise

    def get(self, key: str) -> dict[str, Any] | None:
        """The entry of a key, None where there is none."""
        with self._lock:
            row = self._file.execute("SELECT entry FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, model: str, entry: dict[str, Any], *events: str) -> None:
        """Adds an entry and notes events; an answer that is there stays, a refusal gives way."""
        text = json.dumps(entry, ensure_ascii=True)  # a lone surrogate cannot be stored as UTF-8
        with self._lock, self._transaction():
            self._file.execute(
                "INSERT INTO answers VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE "
                "SET entry = excluded.entry WHERE json_extract(entry, '$.refused') IS NOT NULL",
                (key, model, text),
            )
            self._note(model, events)

    def note(self, model: str, *events: str) -> None:
        """Counts what happened on the way to answers, as "fault: time-out"."""
        with self._lock, self._transaction():
            self._note(model, events)

    def _note(self, model: str, events: Sequence[str]) -> None:
        self._file.executemany(
            "INSERT INTO events VALUES (?, ?, 1) ON CONFLICT (model, what) DO UPDATE "
            "SET number = number + 1",
            [(model, what) for what in events],
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """One write to the disk for all of the block."""
        self._file.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._file.execute("ROLLBACK")
            raise
        self._file.execute("COMMIT")

    def noted(self, model: str) -> dict[str, int]:
        """What happened to a model's questions, over all runs: what -> how often."""
        with self._lock:
            found = self._file.execute(
                "SELECT what, number FROM events WHERE model = ? ORDER BY what", (model,)
            )
            return dict(found.fetchall())

    def spent(self, model: str) -> tuple[int, int]:
        """The requests to a model, and its answers' tokens, questions included, as it counted."""
        with self._lock:
            tokens = self._file.execute(
                "SELECT COALESCE(SUM(json_extract(entry, '$.tokens')), 0) FROM answers "
                "WHERE model = ?",
                (model,),
            ).fetchone()[0]
        return self.noted(model).get("asked", 0), tokens

    def has_answer(self, model: str) -> bool:
        """Whether any question to a model was answered, not refused."""
        with self._lock:
            found = self._file.execute(
                "SELECT 1 FROM answers WHERE model = ? "
                "AND json_extract(entry, '$.refused') IS NULL LIMIT 1",
                (model,),
            )
            return found.fetchone() is not None

    def __len__(self) -> int:
        with self._lock:
            return self._file.execute("SELECT COUNT(*) FROM answers").fetchone()[0]

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
