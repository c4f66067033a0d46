"""Many processes that train as one: how they find each other, agree to stop, and end together.

On TPU VMs, GKE and SLURM, `--distributed=auto` finds everything. Elsewhere each process is told where process 0 listens:

    python -m janus_jax.train ... --distributed=10.0.0.1:8476 --num_processes=2 --process_id=0     # and 1 on the other

The scripts of launch/ do so. A process that fails ends at once, and so do the others, within half a minute, since they
would wait for it; the same command goes on from the newest checkpoint.
"""

import contextlib
import json
import os
import signal
import sys
import traceback

import jax
import numpy as np
from absl import flags, logging
from jax.experimental import multihost_utils

from janus_jax.cli import PREEMPTED
from janus_jax.errors import UserError

PATIENCE = 900  # seconds to wait for the others in the beginning
LOST = ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED", "Gloo", "NCCL", "onnection")  # of jax's errors
HEARTBEAT = 30  # seconds without a word after which a process counts as dead

DISTRIBUTED = flags.DEFINE_string(
    "distributed", None, "Trains with other processes: 'auto' on TPU VMs, GKE and SLURM, or HOST:PORT of process 0."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many, with --distributed=HOST:PORT.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)


@contextlib.contextmanager
def joined():
    """Joins the other processes of the run, as the flags say, before anything asks for devices.

    Raises:
      UserError: where they cannot be found; what goes wrong inside ends the process.
    """
    if DISTRIBUTED.value is None:
        if NUM_PROCESSES.value or PROCESS_ID.value:
            raise UserError("--num_processes and --process_id need --distributed=HOST:PORT, where process 0 listens.")
        yield
        return
    _join()
    try:
        yield
    except SystemExit:  # they all stop here, and take leave of each other
        raise
    except BaseException as error:  # a process that lingers keeps all others waiting
        os._exit(_last_words(error))


def _join():
    known = {}
    if DISTRIBUTED.value != "auto":
        known = dict(coordinator_address=DISTRIBUTED.value, num_processes=NUM_PROCESSES.value, process_id=PROCESS_ID.value)
        if ":" not in DISTRIBUTED.value or None in known.values() or PROCESS_ID.value >= NUM_PROCESSES.value:
            raise UserError(
                "--distributed is auto, or HOST:PORT of process 0 together with --num_processes and --process_id, "
                "which counts from 0."
            )
    waits = dict(
        initialization_timeout=PATIENCE, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=2 * HEARTBEAT
    )
    try:
        jax.distributed.initialize(**known, **waits)
    except ValueError as error:
        raise UserError(f"--distributed={DISTRIBUTED.value}: the other processes cannot be found: {error}") from None
    except RuntimeError as error:  # they may come later
        logging.error("--distributed=%s: no word of the other processes: %s", DISTRIBUTED.value, error)
        os._exit(PREEMPTED)
    logging.info("Process %d of %d: %d devices", jax.process_index(), jax.process_count(), jax.local_device_count())
    multihost_utils.sync_global_devices("joined")  # gloo's own patience is short: let them connect while all are here
    if jax.process_index():
        logging.set_verbosity(logging.WARNING)  # the first one speaks for all


def _last_words(error):
    """Says why this process ends; its exit code."""
    chain = [error]  # what went wrong while cleaning up behind something else does not hide it
    while chain[-1].__context__ or chain[-1].__cause__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    mistakes = [e for e in chain if isinstance(e, UserError)]
    if mistakes:
        code = 2
        print(f"Error: {' '.join(str(mistakes[0]).split())}", file=sys.stderr)
    else:
        traceback.print_exception(error)
        lost = any(isinstance(e, jax.errors.JaxRuntimeError) and any(word in str(e) for word in LOST) for e in chain)
        code = PREEMPTED if lost else 1
        why = "Another process has probably ended; the same command goes on from the newest checkpoint." if lost else ""
        print(f"Error: process {jax.process_index()} of {jax.process_count()} ends. {why}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def preemption():
    """Whether to save and stop behind a step: a function of the step's number, which is asked at every step.

    After SIGTERM it becomes true; where there are many processes, at a step that they agree on.
    """
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    return lambda step: bool(asked)


def is_first():
    """Whether this process writes what is written once: logs, pictures, the config."""
    return jax.process_index() == 0


def of_first(number):
    """The first process's number, for what all must agree on: which checkpoint is the newest, say."""
    return int(multihost_utils.broadcast_one_to_all(np.array(number))) if jax.process_count() > 1 else number


def merged(mine):
    """The dicts of all processes as one, {string: plain JSON}; where several have a key, that of the last."""
    if jax.process_count() == 1:
        return mine
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(text)))
    rows = multihost_utils.process_allgather(np.pad(text, (0, sizes.max() - len(text))))
    parts = [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
    return {key: value for part in parts for key, value in part.items()}
