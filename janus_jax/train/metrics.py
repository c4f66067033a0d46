"""What a run writes while it trains: metrics.jsonl (one line a step), TensorBoard events, a progress line with ETA."""

import json
import re
import sys
import time
from pathlib import Path

import jax
from absl import logging
from rich import progress

from janus_jax import distributed
from janus_jax.errors import UserError


def readable(metrics):
    """A step's raw metrics as the log shows them: sums and counts by task become means, arrays plain numbers."""
    values = {k: v.item() for k, v in metrics.items()}
    for task, short in (("understanding", "und"), ("text", "text")):
        if f"{task}_count" in values:
            count = max(values.pop(f"{task}_count"), 1.0)
            values[f"loss_{short}"] = values.pop(f"{task}_sum") / count
            values[f"{short}_accuracy"] = values.pop(f"{task}_hits") / count
    return values


class Log:
    """The log of a run. Lines of steps after the one that is resumed from are dropped, so each step has one line."""

    def __init__(self, workdir, *, resumed_step):
        self._file = self._events = None
        if not distributed.is_primary():
            return
        self._path = Path(workdir) / "metrics.jsonl"
        kept = []
        if self._path.exists():
            lines = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= resumed_step]
        partial = self._path.with_suffix(".tmp")
        partial.write_text("".join(kept))
        partial.replace(self._path)
        self._file = self._path.open("a", buffering=1)
        import tensorboardX  # here: where PyTorch is installed it imports that too, which takes seconds

        self._events = tensorboardX.SummaryWriter(str(workdir))

    def write(self, step, values):
        """Writes one step: `values` are plain numbers, lists of numbers, or strings."""
        if not self._file:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._events.add_scalar(name, value, step)

    def picture(self, step, name, image):
        """Shows a picture, uint8[h, w, 3], in TensorBoard."""
        self._events.add_image(name, image, step, dataformats="HWC")

    def close(self):
        """Flushes everything."""
        if self._file:
            self._file.close()
            self._events.close()


class Profile:
    """A trace of a few steps for XProf, in WORKDIR/profile; docs/profiling.md shows how to read it."""

    def __init__(self, steps, folder):
        """`steps` is like '10:13', the 10th to the 12th step of every stage, or empty.

        Raises:
          UserError: for anything else.
        """
        found = re.fullmatch(r"(\d+):(\d+)", steps)
        if steps and not (found and 0 < int(found[1]) < int(found[2])):
            raise UserError(f"config.profile_steps is {steps!r}; write 10:13 for the steps 10, 11 and 12.")
        self._steps = range(int(found[1]), int(found[2])) if steps else range(0)
        self._folder, self._tracing, self._first = str(folder), False, None

    def before(self, step):
        """Begins the trace at the first of its steps, or where a run goes on among them."""
        if step in self._steps and not self._tracing and distributed.is_primary():
            self._first = step
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after(self, step, metrics):
        """Ends it behind the last one, when its metrics are there."""
        if self._tracing and step == self._steps.stop - 1:
            jax.block_until_ready(metrics)
            self.close()

    def close(self):
        """Ends a trace that is under way; where a stage had none of its steps, it says so."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            logging.info("Wrote the trace from step %d on: xprof %s", self._first, self._folder)
        elif self._steps and self._first is None and distributed.is_primary():
            first, last = self._steps[0], self._steps[-1]
            logging.warning("No trace was written: none of the steps %d to %d was made in this stage", first, last)


class Progress:
    """A live line in a terminal; in a file, a line every ten seconds."""

    def __init__(self, name, *, done, total):
        self._name, self._total = name, total
        self._live = sys.stderr.isatty() and distributed.is_primary()
        self._last, self._start, self._first = 0.0, time.monotonic(), done
        if self._live:
            columns = ("{task.description}", progress.BarColumn(), progress.MofNCompleteColumn())
            times = (progress.TimeElapsedColumn(), "ETA", progress.TimeRemainingColumn())
            self._bar = progress.Progress(*columns, *times, "{task.fields[figures]}")
            self._task = self._bar.add_task(name, total=total, completed=done, figures="")
            self._bar.start()

    def update(self, done, figures):
        """Shows the number of steps done and a few figures, a short text."""
        if self._live:
            self._bar.update(self._task, completed=done, figures=figures)
            return
        now = time.monotonic()
        if now - self._last < 10 and done < self._total:
            return
        self._last = now
        left = (now - self._start) / max(done - self._first, 1) * (self._total - done)
        logging.info("%s %d/%d  %s  ETA %dm%02ds", self._name, done, self._total, figures, left // 60, left % 60)

    def close(self):
        """Leaves the terminal as it was."""
        if self._live:
            self._bar.stop()
