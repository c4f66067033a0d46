"""Many processes that train as one: how they connect, move data, agree to stop, and end together.

On TPU VMs, GKE and SLURM, `--distributed=auto` finds all processes. Elsewhere each process gets the
address where process 0 listens; the second of two processes runs

    python -m janus_jax.train ... --distributed=10.0.0.1:8476 --num_processes=2 --process_id=1

The scripts in launch/ do this. When one process fails it exits at once, and the others, which would
otherwise wait for it forever, exit within half a minute. The same command then resumes from the
newest checkpoint.
"""

import contextlib
import json
import os
import signal
import sys
import traceback

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from janus_jax import sharding
from janus_jax.errors import UserError

PREEMPTED = 75  # exit code: SIGTERM came, the state was saved, and the same command resumes
CONNECT_TIMEOUT = 900  # seconds to wait for the other processes at the start
# In jax's errors
LOST = ("UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "CANCELLED", "Gloo", "NCCL", "onnection")
HEARTBEAT = 30  # seconds without a heartbeat after which a process counts as dead


@contextlib.contextmanager
def connected(address, *, num_processes=None, process_id=None):
    """Connects to the other processes of the run, before anything asks for devices.

    Args:
      address: 'auto', HOST:PORT of process 0, or None for a single process.
      num_processes: how many there are, with HOST:PORT.
      process_id: which of them this is, with HOST:PORT.

    Raises:
      UserError: when the arguments are inconsistent or the others cannot be found. Any error inside
        the context ends the process, since a process that lingers keeps all others waiting.
    """
    if address is None:
        if num_processes or process_id:
            raise UserError(
                "--num_processes and --process_id need --distributed=HOST:PORT, where "
                "process 0 listens."
            )
        yield
        return
    _connect(address, num_processes, process_id)
    try:
        yield
    # All processes stop here; jax's own barrier at exit lets them leave together
    except SystemExit:
        raise
    except BaseException as error:
        os._exit(_report_failure(error))


def _connect(address, num_processes, process_id):
    known = {}
    if address != "auto":
        known = dict(
            coordinator_address=address, num_processes=num_processes, process_id=process_id
        )
        if ":" not in address or None in known.values() or process_id >= num_processes:
            raise UserError(
                "--distributed is auto, or HOST:PORT of process 0 together with --num_processes "
                "and --process_id, which counts from 0."
            )
    timeouts = dict(
        initialization_timeout=CONNECT_TIMEOUT,
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=2 * HEARTBEAT,
    )
    try:
        jax.distributed.initialize(**known, **timeouts)
    except ValueError as error:
        raise UserError(
            f"--distributed={address}: the other processes cannot be found: {error}"
        ) from None
    except RuntimeError as error:  # they may come later
        logging.error("--distributed=%s: the other processes did not answer: %s", address, error)
        os._exit(PREEMPTED)
    logging.info(
        "Process %d of %d: %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
    )
    # Gloo's own timeout is short: connect while all processes are here
    multihost_utils.sync_global_devices("connected")
    if jax.process_index():
        logging.set_verbosity(logging.WARNING)  # only process 0 logs progress


def _report_failure(error):
    """Prints why this process ends and returns its exit code."""
    chain = [error]  # an error during clean-up does not hide the first one
    while chain[-1].__context__ or chain[-1].__cause__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    user_errors = [e for e in chain if isinstance(e, UserError)]
    if user_errors:
        code = 2
        print(f"Error: {' '.join(str(user_errors[0]).split())}", file=sys.stderr)
    else:
        traceback.print_exception(error)
        lost = any(
            isinstance(e, jax.errors.JaxRuntimeError) and any(word in str(e) for word in LOST)
            for e in chain
        )
        code = PREEMPTED if lost else 1
        why = (
            "Another process has probably ended; the same command resumes from the newest "
            "checkpoint."
            if lost
            else ""
        )
        print(
            f"Error: process {jax.process_index()} of {jax.process_count()} ends. {why}",
            file=sys.stderr,
        )
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def preemption():
    """Returns `step -> bool`: whether the run must checkpoint and exit after this step.

    It returns True after SIGTERM; with many processes, at a step that all of them agree on.
    """
    if jax.process_count() > 1:
        return multihost_utils.reached_preemption_sync_point
    signals = []
    signal.signal(signal.SIGTERM, lambda *_: signals.append(True))
    return lambda step: bool(signals)


def is_primary():
    """Whether this process writes what is written once: logs, images, the config."""
    return jax.process_index() == 0


def from_primary(number):
    """Process 0's value of a number that all processes must share, such as a checkpoint's step."""
    return (
        int(multihost_utils.broadcast_one_to_all(np.array(number)))
        if jax.process_count() > 1
        else number
    )


def merge_dicts(mine):
    """Merges {string: plain JSON} of all processes; the last one wins for a key in several."""
    if jax.process_count() == 1:
        return mine
    text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(text)))
    rows = multihost_utils.process_allgather(np.pad(text, (0, sizes.max() - len(text))))
    parts = [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
    return {key: value for part in parts for key, value in part.items()}


def put_batch(mesh, batch):
    """Puts this process's pack groups of a host batch on the mesh as one global array each."""
    groups = sharding.batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(groups, np.asarray(x)), batch
    )


def host_share(mesh):
    """Which part of every batch this process holds: its index, and the number of parts.

    Processes that share a `tensor` group hold the same part.

    Raises:
      UserError: when parts overlap because a `tensor` group splits a process.
    """
    rows = {}  # process -> rows of the batch that it holds
    for row, devices in enumerate(mesh.devices.reshape(sharding.batch_divisor(mesh), -1)):
        for device in devices:
            rows.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(part)) for part in rows.values()})
    if sum(map(len, parts)) != sharding.batch_divisor(mesh):
        raise UserError(
            f"Mesh tensor={mesh.shape['tensor']} over {len(rows)} processes of "
            f"{jax.local_device_count()} devices: one must divide the other (--config.mesh.tensor)."
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def sum_over_hosts(mesh, counts):
    """Sums numbers over the hosts' parts of a batch, on the devices, so that no host waits.

    Args:
      mesh: the mesh of the run.
      counts: {name: number or list of numbers} of this process's part.

    Returns:
      {name: array} of the whole batch; `counts` itself in a single process.
    """
    if jax.process_count() == 1:
        return counts
    rows = sharding.batch_divisor(mesh) // host_share(mesh)[1]
    first_of = lambda n: np.stack(
        [np.asarray(n, np.float32), *[np.zeros(np.shape(n), np.float32)] * (rows - 1)]
    )
    total = jax.jit(_sum_leading_axis, out_shardings=sharding.replicated(mesh))
    return total(put_batch(mesh, {name: first_of(n) for name, n in counts.items()}))


def _sum_leading_axis(parts):
    return {name: x.sum(0) for name, x in parts.items()}


def to_host(x):
    """Copies an array to the host, whatever its sharding."""
    if not x.is_fully_addressable:
        x = jax.jit(lambda x: x, out_shardings=sharding.replicated(x.sharding.mesh))(x)
    return np.asarray(x)


def shard_leading_axis(tree):
    """Shards leading axes over data x fsdp; if one does not divide, all arrays stay as they are."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty or any(len(x) % sharding.batch_divisor(mesh) for x in jax.tree.leaves(tree)):
        return tree
    return jax.device_put(tree, sharding.batch_sharding(mesh))


def pad_to_mesh(tree):
    """Repeats the last row of host arrays until the number of rows divides over data x fsdp."""
    mesh = jax.sharding.get_mesh()
    parts = 1 if mesh.empty else sharding.batch_divisor(mesh)
    return jax.tree.map(
        lambda x: np.concatenate([x, np.repeat(x[-1:], -len(x) % parts, axis=0)]), tree
    )
