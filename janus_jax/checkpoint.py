"""Checkpoints: parameters, optimizer and data position saved together, asynchronously and atomically, by Orbax.

    WORKDIR/checkpoints/STEP/params      {part: {...: array}}, nested as in the papers' figure
    WORKDIR/checkpoints/STEP/ema         the moving average of what trained, where the run keeps one
    WORKDIR/checkpoints/STEP/optimizer   optimizer state, step and counters of the stage
    WORKDIR/checkpoints/STEP/about       JSON: resolved config, stage, data position, the text tokenizer, sums of all arrays

A step that was cut off while it was written is never seen; one that turns out damaged is named and the one before it
is taken. Arrays come back on any mesh; those that come back in the dtype they were saved in are compared with their sums.
"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
from absl import logging
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from janus_jax import fingerprint
from janus_jax.errors import UserError

DAMAGE = (
    KeyError,
    ValueError,
    OSError,
    TypeError,
    AttributeError,
    AssertionError,
)  # what Orbax raises for missing or broken files


class Saved(NamedTuple):
    """One complete step on disk.

    Attributes:
      directory: the folder that holds the steps.
      step: its number, counted over the whole recipe.
      about: stage, stage_start, config, data position, tokenizer.
    """

    directory: Path
    step: int
    about: dict

    @property
    def fingerprint(self):
        """16 hexadecimal digits of all it holds, by its sums: another run's same step has others."""
        return fingerprint.hash_text(json.dumps(self.about.get("sums"), sort_keys=True))


class Writer:
    """Saves steps into a workdir, keeping the newest few, and step 0, which only `convert import` writes."""

    def __init__(self, workdir, *, keep, context=None):
        """`context` is Orbax's, to write otherwise than runs do."""
        self._context = context or _context()
        policies = ocp.training.preservation_policies
        with self._context:
            self._checkpointer = ocp.training.Checkpointer(
                str(Path(workdir).absolute() / "checkpoints"),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), policies.CustomSteps([0])]),
            )

    def save(self, step, *, params, about, optimizer=None, ema=None):
        """Starts saving a step: `params` and `ema` are flat, `about` is plain JSON; imported weights are params alone."""
        items = {"params": _nested(params)}
        items |= {} if optimizer is None else {"optimizer": optimizer}
        items |= {"ema": _nested(ema)} if ema else {}
        sums = {item: fingerprint.checksums(_named(tree)) for item, tree in items.items()}
        items["about"] = {"json": json.dumps(about | {"sums": sums})}
        with self._context:
            self._checkpointer.save_checkpointables_async(step, items)

    def wait(self):
        """Returns when everything is on disk."""
        self._checkpointer.close()


def _context():
    """Small arrays are written whole: cut among many devices they take longer to write than to train."""
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
    return context


def save_imported(workdir, *, params, about):
    """Saves step 0 of a new workdir, for weights that just fit: a few arrays are copied and written at a time."""
    context = _context()
    largest = max(a.nbytes for a in params.values())
    context.memory.transfer_concurrent_bytes = context.memory.write_concurrent_bytes = max(2**28, largest + 1)
    context.memory.is_prioritized_key_fn = lambda path: False
    context.array.saving.storage_options.chunk_byte_size = 2**26
    context.array.saving.use_ocdbt = False  # it would hold everything in memory until the last array is written
    writer = Writer(workdir, keep=1, context=context)
    writer.save(0, params=params, about=about)
    writer.wait()


def steps(directory):
    """Complete steps in a folder of checkpoints, newest first."""
    names = Path(directory).glob("[0-9]*")
    done = [int(p.name) for p in names if p.name.isdigit() and (p / "commit_success.txt").exists()]
    return sorted(done, reverse=True)


def newest(path):
    """The newest complete step of a workdir, or the very step that the path names.

    Args:
      path: a workdir, or one step's folder.

    Returns:
      Saved, or None when there is none.
    """
    path = Path(path).absolute()
    if path.name.isdigit() and path.parent.name == "checkpoints":
        directory, found = path.parent, [int(path.name)] if path.is_dir() else []
    else:
        directory = path / "checkpoints"
        found = steps(directory)
    for step in found:
        try:
            about = _load(directory, step, {"about": None})["about"]
            saved = Saved(directory, step, json.loads(about["json"]))
            if not param_structs(saved) or "stage" not in saved.about:
                raise ValueError("it holds no parameters or does not say of which stage")
        except DAMAGE as error:
            logging.warning("Checkpoint %s is damaged and skipped: %s", directory / str(step), str(error)[:200])
            continue
        return saved
    return None


def open_saved(path):
    """As `newest`, but a missing checkpoint is an error that says what was looked for."""
    saved = newest(path)
    if saved is None:
        raise UserError(f"No complete checkpoint in {str(path)!r}; give a workdir of a run, or one of its checkpoints/STEP.")
    return saved


def param_structs(saved, item="params"):
    """{path: shape and dtype} of the parameters that a saved step holds, or of their moving average, item 'ema'."""
    metadata = ocp.checkpointables_metadata(saved.directory / str(saved.step)).metadata
    flat = traverse_util.flatten_dict(metadata.get(item, {}), sep="/")
    return {path: jax.ShapeDtypeStruct(m.shape, m.dtype) for path, m in flat.items()}


def load_params(saved, abstract, *, weights="raw"):
    """Reads parameters.

    Args:
      saved: Saved.
      abstract: {path: ShapeDtypeStruct with its sharding}, any part of what is saved; dtypes are cast to.
      weights: 'ema' takes the moving average of every parameter that has one; 'raw' none.

    Returns:
      {path: array}.

    Raises:
      UserError: for a parameter that is missing or whose shape differs, with its path.
    """
    held = param_structs(saved)
    for path, leaf in abstract.items():
        if path not in held:
            raise UserError(f"Checkpoint {str(saved.directory / str(saved.step))!r} has no {path}: it holds only a part.")
        if held[path].shape != leaf.shape:
            raise UserError(
                f"{path} is {held[path].shape} in checkpoint {str(saved.directory / str(saved.step))!r} and {leaf.shape} "
                "in the config; use the config the checkpoint was made with."
            )
    averaged = param_structs(saved, "ema").keys() & abstract.keys() if weights == "ema" else set()
    parts = {"params": {p: a for p, a in abstract.items() if p not in averaged}, "ema": {p: abstract[p] for p in averaged}}
    read = _read(saved, {item: _nested(part) for item, part in parts.items() if part})
    return {path: a for part in read.values() for path, a in traverse_util.flatten_dict(part, sep="/").items()}


def load_optimizer(saved, abstract):
    """Reads optimizer state and counters like `abstract`."""
    return _read(saved, {"optimizer": abstract})["optimizer"]


def load_ema(saved, abstract):
    """Reads the moving average like `abstract`, {path: ShapeDtypeStruct with its sharding}; empty when that is."""
    if not abstract:
        return {}
    return traverse_util.flatten_dict(_read(saved, {"ema": _nested(abstract)})["ema"], sep="/")


def _nested(flat):
    return traverse_util.unflatten_dict(flat, sep="/")


def _named(tree):
    """{path: leaf} of nested dicts or of an optimizer's state."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _read(saved, items):
    """Arrays of a step; files that turn out broken on the way are told with the way out."""
    try:
        read = _load(saved.directory, saved.step, items)
        for item, tree in read.items():
            _compare(_named(tree), saved, item)
        return read
    except DAMAGE as error:
        folder = saved.directory / str(saved.step)
        raise UserError(
            f"Checkpoint {str(folder)!r} is damaged ({str(error)[:200]}); delete that folder, and the step "
            "before it is taken."
        ) from None


def _compare(arrays, saved, item):
    """Raises ValueError for an array whose bits are not those that were saved; one of another dtype was cast."""
    sums = saved.about.get("sums", {}).get(item, {})  # early checkpoints have none
    for path, now in fingerprint.checksums(arrays).items():
        before = sums.get(path, now)
        if now != before and now.split()[0] == before.split()[0]:
            raise ValueError(f"the bits of {item}{path} have changed since they were saved")


def set_damaged_aside(workdir, *, newer_than):
    """Renames the steps behind the one a run goes on from: they were found damaged, and are about to be made again."""
    for step in steps(Path(workdir) / "checkpoints"):
        if step > newer_than:
            folder = Path(workdir) / "checkpoints" / str(step)
            folder.rename(folder.with_name(f"damaged-{step}"))


def _load(directory, step, items):
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return ocp.load_checkpointables(directory / str(step), items)


def abstract_like(leaf, sharding):
    """ShapeDtypeStruct of a leaf on a sharding."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
