"""What a run writes while it trains: metrics.jsonl (one line a step), TensorBoard events, a progress line with ETA."""

import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import tensorboardX
from absl import logging
from rich import progress

from janus_jax import chips, processes


def peak_flops():
    """FLOP/s that MFU is a share of, over all devices; on CPU the rate of a jitted fp32 product, best of 15."""
    kind = jax.devices()[0].device_kind
    if known := chips.of(kind).peak:
        return known * jax.device_count()
    a, b = jnp.ones((4096, 512)), jnp.ones((512, 1408))
    product = jax.jit(jnp.matmul)
    best = float("inf")
    for _ in range(15):
        start = time.perf_counter()
        product(a, b).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * 4096 * 512 * 1408 / best


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
        if not processes.is_first():
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


class Progress:
    """A live line in a terminal; in a file, a line every ten seconds."""

    def __init__(self, name, *, done, total):
        self._name, self._total = name, total
        self._live = sys.stderr.isatty() and processes.is_first()
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
