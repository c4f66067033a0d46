"""What becomes of records that cannot be used: counted, told of, written down, and too many of them stop the run."""

import collections
import contextlib
import json
import threading
from pathlib import Path

from absl import logging

from janus_jax.data.images import BadRecord, TooLong
from janus_jax.errors import UserError


@contextlib.contextmanager
def malformed_is_bad():
    """Turns what reading or laying out a record of another form raises into BadRecord; so does a file that is gone."""
    try:
        yield
    except OSError as error:
        raise BadRecord(f"unreadable file ({error.strerror or error})") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise BadRecord(f"malformed record ({type(error).__name__} {error})") from None


FEWEST = 1_000  # records that the limit is a share of, where fewer were seen: two bad ones among a hundred say little


class BadRecords:
    """Counts unusable records by source and reason, and keeps a report of them."""

    def __init__(self, limit, *, sources, report=None):
        """Starts counting.

        Args:
          limit: share of unusable records that stops the run.
          sources: {name: Source}, to say where a record lies.
          report: a JSONL file, a line {source, record, where, epoch, reason} for each record; None writes none. One
            that exists is continued, without telling twice of what a resumed run meets again.
        """
        self.limit, self.seen, self.reasons, self.too_long = limit, 0, collections.Counter(), 0
        self._sources, self._lock, self._file, self._told = sources, threading.Lock(), None, set()
        if report is not None:
            if Path(report).exists():
                whole = [line for line in Path(report).read_text("utf-8").splitlines(keepends=True) if line.endswith("}\n")]
                Path(report).write_text("".join(whole), "utf-8")  # without one that a kill cut short
                self._told = {(line["source"], line["record"], line["reason"]) for line in map(json.loads, whole)}
            self._file = report

    def good(self):
        """Notes a usable record."""
        with self._lock:
            self.seen += 1

    def bad(self, record_id, error):
        """Notes an unusable one; its first, tenth, hundredth, ... fellow is told in the log.

        Args:
          record_id: 'source/epoch/index'.
          error: BadRecord.

        Raises:
          UserError: when their share passes the limit, counted over at least FEWEST records. Examples that are left
            out because they are too long, as config.data.overlong='skip' asks, do not count towards it.
        """
        source, epoch, index = record_id.rsplit("/", 2)
        reason = f"{source}: {error}"
        with self._lock:
            self.seen += 1
            self.reasons[reason] += 1
            self.too_long += isinstance(error, TooLong)
            alike, count = self.reasons[reason], self.reasons.total() - self.too_long
            self._write(source, int(epoch), int(index), str(error))
        if 10 ** (len(str(alike)) - 1) == alike:
            where = self._where(source, int(index))
            logging.warning("Left out %d record%s of %s (lately %s, %s)", alike, "s" * (alike > 1), reason, record_id, where)
        if count > self.limit * max(self.seen, FEWEST):
            told = f" They are listed in {str(self._file)!r}." if self._file else ""
            raise UserError(
                f"{count} of {self.seen} records are unusable, more than config.data.bad_record_limit="
                f"{self.limit:.0%}: {dict(self.reasons)}, lately {record_id!r}.{told} Mend the data or raise the limit."
            )

    def _write(self, source, epoch, index, reason):
        if self._file is None or (source, index, reason) in self._told:
            return
        self._told.add((source, index, reason))
        line = {"source": source, "record": index, "where": self._where(source, index), "epoch": epoch, "reason": reason}
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _where(self, source, index):
        """Where a record lies, in words that can be written: a path may be no text."""
        return self._sources[source].locate(index).encode(errors="backslashreplace").decode()
