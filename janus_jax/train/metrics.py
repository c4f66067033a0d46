"""What a run reports: metrics.jsonl (one line per step), TensorBoard events, a progress bar."""

import json
import re
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import logging
from rich import progress

from janus_jax import distributed, hardware
from janus_jax.data.files import write_whole
from janus_jax.data.pipeline import COUNTS, statistics
from janus_jax.errors import UserError


class Reporter:
    """Logs a step's metrics once the next step is dispatched, and stops a run that diverges."""

    def __init__(self, stage, state, first_step, log, profile):
        """Sets it up.

        Args:
          stage: Stage.
          state: TrainState that the loop starts from.
          first_step: steps of the recipe before this stage.
          log: Log.
          profile: Profile.
        """
        done = int(state.step)
        self._stage, self._first_step, self._log = stage, first_step, log
        self._profile = profile
        self._peak_flops = hardware.peak_flops()
        self._progress = Progress(f"stage {stage.name}", done=done, total=stage.last_step)
        self._number, self._pending = done, None
        self._last_checkpoint = self.global_step
        self._clock = time.perf_counter()

    @property
    def global_step(self):
        """Steps of the recipe that have been dispatched."""
        return self._first_step + self._number

    def before(self, number):
        """Starts the trace where this step is the first of it."""
        self._profile.before(number)

    def add(self, number, packed, metrics):
        """Takes the metrics of a step of the stage, and reports those of the step before.

        Args:
          number: of the step in the stage, from 1.
          packed: Packed, this host's data of the step.
          metrics: {name: scalar on the device}.

        Raises:
          UserError: when too many steps in a row were not finite.
        """
        self._number = number
        self._profile.after(number, metrics)
        counts = distributed.sum_over_hosts(
            self._stage.mesh, {name: packed.stats[name] for name in COUNTS}
        )
        self.flush()
        self._pending = (number, packed, counts, metrics)

    def flush(self):
        """Reports the last step that was added, waiting for its metrics."""
        if self._pending:
            self._report(*self._pending)
            self._pending = None

    def checkpointed(self):
        """Notes that all steps so far are saved; the time of saving does not count as a step's."""
        self._last_checkpoint = self.global_step
        self._clock = time.perf_counter()

    def close(self):
        """Closes the trace and the progress bar."""
        self._profile.close()
        self._progress.close()

    def _report(self, number, packed, counts, metrics):
        stage, step = self._stage, self._first_step + number
        values = {name: value.item() for name, value in jax.device_get(metrics).items()}
        counts = {name: np.asarray(count).tolist() for name, count in counts.items()}
        stats = packed.stats | statistics(counts)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        useful_flops = sum(stage.flops(stats).values())
        skipped = values.pop("skipped")
        values |= {name: stats[name] for name in ("token_fill", "slot_fill", "ratio")}
        values |= {f"epochs/{name}": round(share, 4) for name, share in stats["epochs"].items()}
        values |= {
            "tokens_per_second": stats["tokens"] / seconds,
            "mfu": useful_flops / seconds / self._peak_flops,
            "seconds": seconds,
        }
        if number % stage.config["log_every"] == 0 or number == stage.last_step:
            self._log.write(step, {"stage": stage.name, **values})
        self._progress.update(
            number, f"loss {values['loss']:.4f}  {values['tokens_per_second']:.0f} tokens/s"
        )
        if skipped >= stage.config["max_skipped_steps"]:
            raise UserError(
                f"Loss or gradient was not finite in {skipped} steps in a row, the last one "
                f"{step}, with records {packed.record_ids[:8]}; the last good checkpoint is step "
                f"{self._last_checkpoint}. Lower config.stages.{stage.name}.lr or look at these "
                "records."
            )


class Log:
    """The log of a run, one line per step; lines after the step to resume from are dropped."""

    def __init__(self, workdir, *, resumed_step):
        self._file = self._events = None
        if not distributed.is_primary():
            return
        self._path = Path(workdir) / "metrics.jsonl"
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        lines = [
            line
            for line in lines
            if line.endswith("\n") and json.loads(line)["step"] <= resumed_step
        ]
        write_whole(self._path, "".join(lines).encode())
        self._file = self._path.open("a", buffering=1)
        import tensorboardX  # here: it imports PyTorch where that is installed, which takes seconds

        self._events = tensorboardX.SummaryWriter(str(workdir))

    def write(self, step, values):
        """Writes one step: `values` are plain numbers, lists of numbers, or strings."""
        if not self._file:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._events.add_scalar(name, value, step)

    def image(self, step, name, image):
        """Shows an image, uint8[h, w, 3], in TensorBoard."""
        self._events.add_image(name, image, step, dataformats="HWC")

    def close(self):
        """Flushes everything."""
        if self._file:
            self._file.close()
            self._events.close()


class Profile:
    """A trace of a few steps for XProf, in WORKDIR/profile; docs/profiling.md explains it."""

    def __init__(self, steps, folder):
        """`steps` is empty, or '10:13' for the steps 10, 11 and 12 of every stage.

        Raises:
          UserError: for anything else.
        """
        match = re.fullmatch(r"(\d+):(\d+)", steps)
        if steps and not (match and 0 < int(match[1]) < int(match[2])):
            raise UserError(
                f"config.profile_steps is {steps!r}; write 10:13 for the steps 10, 11 and 12."
            )
        self._steps = range(int(match[1]), int(match[2])) if steps else range(0)
        self._folder, self._tracing, self._first = str(folder), False, None

    def before(self, step):
        """Starts the trace at the first of its steps that this process runs."""
        if step in self._steps and not self._tracing and distributed.is_primary():
            self._first = step
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after(self, step, metrics):
        """Ends the trace after the last of its steps, when its metrics have arrived."""
        if self._tracing and step == self._steps.stop - 1:
            jax.block_until_ready(metrics)
            self.close()

    def close(self):
        """Ends a trace that is still running; warns if the stage had none of its steps."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
            logging.info(
                "Wrote the trace, starting with step %d: xprof %s", self._first, self._folder
            )
        elif self._steps and self._first is None and distributed.is_primary():
            first, last = self._steps[0], self._steps[-1]
            logging.warning(
                "No trace was written: this stage did not run any of the steps %d to %d",
                first,
                last,
            )


class Progress:
    """A live progress bar in a terminal; in a file, a line every ten seconds."""

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
        """Shows the number of steps done and a short text."""
        if self._live:
            self._bar.update(self._task, completed=done, figures=figures)
            return
        now = time.monotonic()
        if now - self._last < 10 and done < self._total:
            return
        self._last = now
        left = (now - self._start) / max(done - self._first, 1) * (self._total - done)
        logging.info(
            "%s %d/%d  %s  ETA %dm%02ds",
            self._name,
            done,
            self._total,
            figures,
            left // 60,
            left % 60,
        )

    def close(self):
        """Restores the terminal."""
        if self._live:
            self._bar.stop()
