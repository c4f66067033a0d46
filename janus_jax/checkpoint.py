"""Checkpoints: parameters, optimizer and data position, saved together, asynchronously, atomically.

Orbax writes the folder WORKDIR/checkpoints/STEP; steps are counted over the whole recipe.

    params      {part: {...: array}}, nested as in the papers' figure
    ema         moving average of the trained parameters, where the run has one
    optimizer   optimizer state, step and counters of the stage
    about       JSON with the keys below

Keys of `about`:

    stage        'tokenizer' or 'stage_N'; 'imported' for released weights
    stage_start  step of the recipe at which the stage started
    config       the resolved config, or None for a single tower
    tokenizer    text of the text tokenizer's JSON file, or None
    data         the data pipeline's position, {shard: state}; None for imported weights
    mixtures     [{from_step, settings of the mixture, records per source}] of the stage
    sums         {item: {path: checksum of the array}}

Incomplete steps are ignored. A damaged one is reported, and the newest intact step is used instead.
Arrays can be loaded on any mesh; those loaded in their own dtype are compared with their checksums.
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

# Exceptions of Orbax for missing or broken files.
DAMAGE = (KeyError, ValueError, OSError, TypeError, AttributeError, AssertionError)


class Saved(NamedTuple):
    """One complete step on disk.

    Attributes:
      directory: folder of the steps.
      step: of the recipe.
      about: dict, see the top of this file; old and imported checkpoints lack some keys.
    """

    directory: Path
    step: int
    about: dict

    @property
    def fingerprint(self):
        """16 hexadecimal digits that identify the content, from the checksums."""
        return fingerprint.hash_text(json.dumps(self.about.get("sums"), sort_keys=True))


class Writer:
    """Saves steps into a workdir.

    It keeps the newest `keep` steps, and step 0, which only `convert import` writes.
    """

    def __init__(self, workdir, *, keep, context=None):
        """`context` is an Orbax Context with other settings than those of training runs."""
        self._context = context or _context()
        policies = ocp.training.preservation_policies
        with self._context:
            self._checkpointer = ocp.training.Checkpointer(
                str(Path(workdir).absolute() / "checkpoints"),
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy(
                    [policies.LatestN(keep), policies.CustomSteps([0])]
                ),
            )

    def save(self, step, *, params, about, optimizer=None, ema=None):
        """Starts to save a step and returns before it is written.

        Args:
          step: of the recipe.
          params: {path: array}.
          about: dict of plain JSON, without `sums`.
          optimizer: optimizer state and counters; None for imported weights.
          ema: {path: array}; None or empty if there is no moving average.
        """
        items = {"params": _nested(params)}
        if optimizer is not None:
            items["optimizer"] = optimizer
        if ema:
            items["ema"] = _nested(ema)
        sums = {item: fingerprint.checksums(_flat(tree)) for item, tree in items.items()}
        items["about"] = {"json": json.dumps(about | {"sums": sums})}
        with self._context:
            self._checkpointer.save_checkpointables_async(step, items)

    def wait(self):
        """Waits until everything is on disk, and closes the writer."""
        self._checkpointer.close()


def _context():
    """Orbax's settings. Small arrays are not split: many small files take long to write."""
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
    return context


def save_imported(workdir, *, params, about):
    """Saves step 0 of a new workdir, with few copies at a time, for weights that barely fit."""
    context = _context()
    largest = max(a.nbytes for a in params.values())
    limit = max(2**28, largest + 1)
    context.memory.transfer_concurrent_bytes = limit
    context.memory.write_concurrent_bytes = limit
    context.memory.is_prioritized_key_fn = lambda path: False
    context.array.saving.storage_options.chunk_byte_size = 2**26
    context.array.saving.use_ocdbt = False  # OCDBT keeps all arrays in memory to the end
    writer = Writer(workdir, keep=1, context=context)
    writer.save(0, params=params, about=about)
    writer.wait()


def steps(directory):
    """Numbers of the complete steps in a folder of checkpoints, newest first."""
    folders = [folder for folder in Path(directory).glob("[0-9]*") if folder.name.isdigit()]
    complete = [int(f.name) for f in folders if (f / "commit_success.txt").exists()]
    return sorted(complete, reverse=True)


def newest(path):
    """The newest intact step of a workdir, or the step that the path names.

    Args:
      path: a workdir, or the folder of a step.

    Returns:
      Saved, or None.
    """
    path = Path(path).absolute()
    if path.name.isdigit() and path.parent.name == "checkpoints":
        directory = path.parent
        candidates = [int(path.name)] if path.is_dir() else []
    else:
        directory = path / "checkpoints"
        candidates = steps(directory)
    for step in candidates:
        try:
            about = _load(directory, step, {"about": None})["about"]
            saved = Saved(directory, step, json.loads(about["json"]))
            if not param_structs(saved) or "stage" not in saved.about:
                raise ValueError("it has no parameters or no stage")
        except DAMAGE as error:
            folder = directory / str(step)
            logging.warning("Checkpoint %s is damaged and ignored: %s", folder, str(error)[:200])
            continue
        return saved
    return None


def open_saved(path):
    """As `newest`, but raises UserError if there is none."""
    saved = newest(path)
    if saved is None:
        raise UserError(
            f"No complete checkpoint in {str(path)!r}; give a workdir of a run, or one of its "
            "checkpoints/STEP."
        )
    return saved


def param_structs(saved, item="params"):
    """{path: ShapeDtypeStruct} of the parameters of a step, or of their average for item 'ema'."""
    metadata = ocp.checkpointables_metadata(_folder(saved)).metadata
    flat = traverse_util.flatten_dict(metadata.get(item, {}), sep="/")
    return {path: jax.ShapeDtypeStruct(m.shape, m.dtype) for path, m in flat.items()}


def load_params(saved, abstract, *, weights="raw"):
    """Reads parameters.

    Args:
      saved: Saved.
      abstract: {path: ShapeDtypeStruct with its sharding} of any saved parameters; arrays are cast
        to its dtypes.
      weights: 'ema' loads the moving average of every parameter that has one, 'raw' none.

    Returns:
      {path: array}.

    Raises:
      UserError: for a parameter that is missing or whose shape differs, with its path.
    """
    structs = param_structs(saved)
    folder = str(_folder(saved))
    for path, leaf in abstract.items():
        if path not in structs:
            raise UserError(f"Checkpoint {folder!r} has no {path}; it is a part of a model.")
        if structs[path].shape != leaf.shape:
            raise UserError(
                f"{path} is {structs[path].shape} in checkpoint {folder!r} and {leaf.shape} in the "
                "config; use the config of the checkpoint."
            )
    averages = param_structs(saved, "ema") if weights == "ema" else {}
    items = {
        "params": {path: leaf for path, leaf in abstract.items() if path not in averages},
        "ema": {path: leaf for path, leaf in abstract.items() if path in averages},
    }
    loaded = _load_checked(saved, {item: _nested(part) for item, part in items.items() if part})
    params = {}
    for part in loaded.values():
        params |= traverse_util.flatten_dict(part, sep="/")
    return params


def load_optimizer(saved, abstract):
    """Loads optimizer state and counters with the structure of `abstract`."""
    return _load_checked(saved, {"optimizer": abstract})["optimizer"]


def load_ema(saved, abstract):
    """Loads the moving average: {path: ShapeDtypeStruct with its sharding} -> {path: array}."""
    if not abstract:
        return {}
    loaded = _load_checked(saved, {"ema": _nested(abstract)})
    return traverse_util.flatten_dict(loaded["ema"], sep="/")


def _nested(flat):
    return traverse_util.unflatten_dict(flat, sep="/")


def _flat(tree):
    """{path: leaf} of nested dicts or of an optimizer's state."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _folder(saved):
    return saved.directory / str(saved.step)


def _load_checked(saved, items):
    """Loads items of a step and compares their checksums; broken files are a UserError."""
    try:
        loaded = _load(saved.directory, saved.step, items)
        for item, tree in loaded.items():
            _compare(_flat(tree), saved, item)
        return loaded
    except DAMAGE as error:
        raise UserError(
            f"Checkpoint {str(_folder(saved))!r} is damaged ({str(error)[:200]}); delete that "
            "folder to use the step before it."
        ) from None


def _compare(arrays, saved, item):
    """Raises ValueError for an array with another checksum; arrays of another dtype were cast."""
    sums = saved.about.get("sums", {}).get(item, {})  # old checkpoints have none
    for path, loaded in fingerprint.checksums(arrays).items():
        saved_sum = sums.get(path, loaded)
        same_dtype = loaded.split()[0] == saved_sum.split()[0]
        if loaded != saved_sum and same_dtype:
            raise ValueError(f"{item}{path} has changed since it was saved")


def set_damaged_aside(workdir, *, newer_than):
    """Renames the steps after a number: they are damaged, and the run will make them again."""
    for step in steps(Path(workdir) / "checkpoints"):
        if step > newer_than:
            folder = Path(workdir) / "checkpoints" / str(step)
            folder.rename(folder.with_name(f"damaged-{step}"))


def _load(directory, step, items):
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return ocp.load_checkpointables(directory / str(step), items)
