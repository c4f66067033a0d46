"""Unusable records are counted, logged and listed in a report; too many of them stop the run."""

import collections
import contextlib
import json
import threading
from pathlib import Path

from absl import logging

from janus_jax.data.images import BadRecord, TooLong
from janus_jax.errors import UserError

MIN_RECORDS = (
    1_000  # the limit is a share of at least as many: two bad ones of a hundred say little
)


@contextlib.contextmanager
def malformed_as_bad_record():
    """Turns exceptions caused by a record of another form, or by a missing file, into BadRecord."""
    try:
        yield
    except OSError as error:
        raise BadRecord(f"unreadable file ({error.strerror or error})") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise BadRecord(f"malformed record ({type(error).__name__} {error})") from None


class BadRecords:
    """Counts unusable records by source and reason, and writes a report of them.

    Attributes:
      total: records read.
      reasons: Counter of 'source: reason'.
      too_long: examples left out because they are too long.
    """

    def __init__(self, limit, *, sources, report=None):
        """Starts counting.

        Args:
          limit: share of unusable records that stops the run.
          sources: {name: Source}, which know where a record is.
          report: a JSONL file with a line {source, record, where, epoch, reason} for each record;
            None writes none. An existing file is continued; a resumed run lists no record again.
        """
        self.limit = limit
        self.total = 0
        self.reasons = collections.Counter()
        self.too_long = 0
        self._sources = sources
        self._lock = threading.Lock()
        self._report = report
        self._reported = set()
        if report is not None and Path(report).exists():
            lines = Path(report).read_text("utf-8").splitlines(keepends=True)
            complete = [line for line in lines if line.endswith("}\n")]  # a kill may cut the last
            Path(report).write_text("".join(complete), "utf-8")
            for line in map(json.loads, complete):
                self._reported.add((line["source"], line["record"], line["reason"]))

    def count_usable(self):
        """Counts a usable record."""
        with self._lock:
            self.total += 1

    def count_bad(self, record_id, error):
        """Counts an unusable record; occurrences 1, 10, 100, ... of a reason are logged.

        Args:
          record_id: 'source/epoch/index'.
          error: BadRecord.

        Raises:
          UserError: when their share exceeds the limit, of at least MIN_RECORDS. Examples left out
            because they are too long (config.data.overlong='skip') do not count towards it.
        """
        source, epoch, index = record_id.rsplit("/", 2)
        reason = f"{source}: {error}"
        with self._lock:
            self.total += 1
            self.reasons[reason] += 1
            self.too_long += isinstance(error, TooLong)
            occurrences = self.reasons[reason]
            bad = self.reasons.total() - self.too_long
            self._write(source, int(epoch), int(index), str(error))
        if 10 ** (len(str(occurrences)) - 1) == occurrences:
            where = self._where(source, int(index))
            plural = "s" * (occurrences > 1)
            logging.warning(
                "Skipped %d record%s of %s (the last one is %s, %s)",
                occurrences,
                plural,
                reason,
                record_id,
                where,
            )
        if bad > self.limit * max(self.total, MIN_RECORDS):
            listed = f" They are listed in {str(self._report)!r}." if self._report else ""
            raise UserError(
                f"{bad} of {self.total} records are unusable, more than "
                f"config.data.bad_record_limit={self.limit:.0%}: {dict(self.reasons)}, the last "
                f"one is {record_id!r}.{listed} Correct the data or raise the limit."
            )

    def _write(self, source, epoch, index, reason):
        if self._report is None or (source, index, reason) in self._reported:
            return
        self._reported.add((source, index, reason))
        line = {
            "source": source,
            "record": index,
            "where": self._where(source, index),
            "epoch": epoch,
            "reason": reason,
        }
        with open(self._report, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _where(self, source, index):
        """Where a record is, as text that can be encoded: a file's name may be no valid text."""
        return self._sources[source].locate(index).encode(errors="backslashreplace").decode()
