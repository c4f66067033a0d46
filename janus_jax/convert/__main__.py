"""Imports released weights, and exports trained ones.

    python -m janus_jax.convert import --layout=deepseek --src=Janus-Pro-1B --out=runs/pro_1b
    python -m janus_jax.convert import --layout=siglip --src=siglip-large-patch16-384 --out=DIR
    python -m janus_jax.convert export --layout=transformers --checkpoint=runs/pro_1b --out=exported

import writes a checkpoint: sample from it with --checkpoint=DIR; train it with --workdir=DIR or, in
another workdir, with --config.init_from=DIR. Whole models have the layouts deepseek and
transformers. Towers, from which stage 1 of the papers starts, have the layouts llama, siglip,
llamagen_vq and diffusers_vae; several towers are given to training together:
--config.init_from=towers/llm,towers/siglip,towers/vq. JanusFlow's release has no autoencoder, and
generation needs one; name it: --layout=deepseek --src=JanusFlow-1.3B --vae=sdxl-vae.

export writes a folder that the release's own code (deepseek) or transformers loads.
"""

import contextlib
import resource
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from rich import progress

from janus_jax import checkpoint, cli, sharding
from janus_jax.convert import files, model_fields, name_map
from janus_jax.convert.layouts import LAYOUTS, TOWERS
from janus_jax.data import tokenizer as text_tokenizer
from janus_jax.errors import UserError
from janus_jax.objectives.joint import Joint
from janus_jax.recipe import freezing
from janus_jax.recipe.stage import to_json

LAYOUT = cli.flags.DEFINE_enum("layout", None, [*LAYOUTS, *TOWERS], "How the weights are named.")
SRC = cli.flags.DEFINE_string(
    "src", None, "import: a folder with weights, config.json and tokenizer.json, or one file."
)
VAE = cli.flags.DEFINE_string(
    "vae", None, "import of JanusFlow: the diffusers folder of its autoencoder, SDXL's."
)
INTO = cli.flags.DEFINE_string(
    "into", None, "import: where a tower goes; by default known from its layout."
)
CONFIG = cli.config_flag()
CHECKPOINT = cli.flags.DEFINE_string(
    "checkpoint", None, "export: a run's workdir, or one of its checkpoints/STEP."
)
OUT = cli.flags.DEFINE_string(
    "out", None, "A new folder: a workdir for import, a folder of weights for export."
)
DTYPE = cli.flags.DEFINE_enum(
    "dtype", None, ["bfloat16", "float32"], "export: by default the checkpoint's own."
)
WEIGHTS = cli.flags.DEFINE_enum(
    "weights", None, ["ema", "raw"], "export: by default the moving average, where there is one."
)
ONLY_FOR = {"import": (SRC, VAE, INTO), "export": (CHECKPOINT, DTYPE, WEIGHTS)}


def main(command):
    """Runs 'import' or 'export'."""
    if not LAYOUT.value or not OUT.value:
        raise UserError("Name the layout and a new folder: --layout=deepseek --out=DIR.")
    other = "export" if command == "import" else "import"
    for flag in ONLY_FOR[other]:
        if flag.value is not None:
            raise UserError(f"--{flag.name} is a flag of {other}, not of {command}.")
    start = time.perf_counter()
    with files.atomic_folder(OUT.value) as folder:
        if command == "import":
            import_weights(folder)
        else:
            export_weights(folder)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    logging.info("Wrote %s in %.0f s with at most %.1f GiB of memory", OUT.value, seconds, peak)


class Source(NamedTuple):
    """A folder of weights and what its tensors are.

    Attributes:
      folder: files.Folder.
      tensors: {tensor name: `name_map.Tensor`}.
      constants: {parameter path: number} that config.json has.
      unused: names of tensors that a checkpoint carries along for a later export.
    """

    folder: files.Folder
    tensors: dict
    constants: dict
    unused: list


class Import(NamedTuple):
    """What is imported: parameters, where they go and where they are from.

    Attributes:
      config: the resolved config of a whole model; None for a tower.
      abstract: {parameter path: ShapeDtypeStruct}.
      axes: {parameter path: logical axes}.
      mesh: Mesh.
      sources: list of Source.
    """

    config: dict | None
    abstract: dict
    axes: dict
    mesh: Any
    sources: list


def import_weights(out):
    """Reads a model or a tower, checks every name, shape and field, and writes a checkpoint."""
    if not SRC.value:
        raise UserError("Name the weights: --src=DIR.")
    folder = files.Folder(SRC.value)
    if LAYOUT.value in TOWERS:
        job = _tower_import(TOWERS[LAYOUT.value], folder)
    else:
        job = _model_import(LAYOUTS[LAYOUT.value], folder)
    tokenizer = _read_tokenizer(folder, job)
    params = _read_params(job)
    parts = {"/".join(path.split("/")[:2]) for path in job.abstract.keys() - params.keys()}
    if parts:
        logging.warning("The weights have no %s", sorted(parts))
    about = {
        "stage": freezing.IMPORTED,
        "stage_start": 0,
        "config": to_json(job.config),
        "tokenizer": tokenizer,
        "data": None,
    }
    checkpoint.save_imported(out, params=params, about=about)
    if tokenizer:
        (out / "tokenizer.json").write_text(tokenizer)
    gibibytes = sum(array.nbytes for array in params.values()) / 2**30
    count = sum(len(source.folder.tensors) for source in job.sources)
    logging.info("%d parameters (%.2f GiB) from %d tensors", len(params), gibibytes, count)


def _model_import(layout, folder):
    if INTO.value:
        raise UserError(f"--into is for towers; the layout {layout.name} has whole models.")
    model = layout.read_config(folder)
    vae = files.Folder(VAE.value) if VAE.value else None
    if vae:
        tower = TOWERS["diffusers_vae"].read_config(vae)
        kind = {"generation": {"kind": tower["generation"]["kind"]}}
        if different := model_fields.differences(kind, model, source="with --vae"):
            raise UserError(f"--vae does not fit these weights: {different[0]}.")
        model = model_fields.merge(model, tower)
    config = _pick_config(layout, model)
    network = _build_network(config)
    kind = config["model"]["generation"]["kind"]
    tensors, unused = layout.match(folder, kind, network.abstract)
    sources = [Source(folder, tensors, {}, unused)]
    if vae:
        sources.append(_tower_source(TOWERS["diffusers_vae"], vae, network.abstract))
    mesh = sharding.make_mesh(**config["mesh"])
    return Import(config, network.abstract, network.axes, mesh, sources)


def _tower_import(tower, folder):
    if VAE.value:
        raise UserError(
            "--vae is for whole models; import an autoencoder alone with --layout=diffusers_vae."
        )
    if INTO.value not in (None, tower.target):
        raise UserError(f"The layout {tower.name} goes into {tower.target}, not into {INTO.value}.")
    model = tower.read_config(folder)
    if CONFIG.value is not None:
        given = CONFIG.value.to_dict()["model"]
        model_fields.check_equal(model, given, source=f"in {SRC.value}")
    logging.info("The %s tower: %s", tower.name, model_fields.flatten(model))
    for note in tower.notes(folder):
        logging.info("%s", note)
    abstract, axes = tower.build(model)
    sources = [_tower_source(tower, folder, abstract)]
    return Import(None, abstract, axes, sharding.make_mesh(), sources)


def _tower_source(tower, folder, abstract):
    return Source(folder, tower.match(folder, abstract), tower.read_constants(folder), [])


def _pick_config(layout, model):
    """The config of a model: the one of --config, or a shipped one.

    When no shipped config has the model's sizes, these replace those of the family's first config.
    """
    if CONFIG.value is not None:
        config = CONFIG.value.to_dict()
        model_fields.check_equal(model, config["model"], source=f"in {SRC.value}")
        return config
    configs = {
        name: cli.load_config(name).to_dict()
        for name in layout.family(model["generation"]["kind"]).configs
    }
    different = {
        name: model_fields.differences(model, config["model"], source=f"in {SRC.value}")
        for name, config in configs.items()
    }
    for name, config in configs.items():
        if not different[name]:
            logging.info("The sizes are those of configs/%s.py", name)
            if name == "pro_1b":
                logging.info(
                    "Janus-1.3B has the same sizes but other role names: import it with "
                    "--config=configs/janus_1p3b.py"
                )
            return config
    name, config = next(iter(configs.items()))
    logging.warning(
        "No shipped config has these sizes; the checkpoint gets configs/%s.py with them: %s",
        name,
        "; ".join(different[name]),
    )
    return config | {"model": model_fields.merge(config["model"], model)}


def _build_network(config):
    """ModelSpec of the whole model."""
    return Joint.build_network(config["model"], dtype=jnp.dtype("float32"))


def _read_tokenizer(folder, job):
    """The text of the folder's tokenizer.json; None where it is missing or no LLM is imported.

    The tokenizer of an LLM tower gets the special tokens that it lacks.
    """
    if "llm/embed" not in job.abstract:
        return None
    file = folder.path / "tokenizer.json"
    if not file.is_file():
        logging.warning(
            "%s has no tokenizer.json; name one for training with --config.data.tokenizer=FILE",
            folder.path,
        )
        return None
    if job.config is not None:
        tokenizer = text_tokenizer.load(file)
    else:
        tokenizer, added = text_tokenizer.complete(file)
        logging.info("Special tokens added to the tokenizer: %s", ", ".join(added) or "none")
    rows = job.abstract["llm/embed"].shape[0]
    if tokenizer.size > rows:
        raise UserError(
            f"{str(file)!r} has {tokenizer.size} tokens, but the embedding table has {rows} rows."
        )
    return tokenizer.text


def _read_params(job):
    """Reads parameters one at a time onto the mesh, {path: array}, with the unused tensors."""
    shardings = sharding.param_shardings(job.mesh, job.abstract, job.axes)
    params = {}
    total = sum(np.prod(leaf.shape) for leaf in job.abstract.values())
    with _progress_bar("importing", total) as advance:
        for source in job.sources:
            read = source.folder.read
            for path, array in name_map.to_params(read, source.tensors, job.abstract):
                params[path] = _put(array, shardings[path])
                advance(array.size)
    for source in job.sources:
        for name in source.unused:
            params[f"unused/{name}"] = jnp.asarray(source.folder.read(name))
        for path, number in source.constants.items():
            params[path] = jax.device_put(number, shardings[path])
    return params


def _put(array, target):
    """Puts a numpy array on a sharding and waits, so that the caller can free it."""
    on_mesh = jax.make_array_from_callback(array.shape, target, lambda index: array[index])
    return on_mesh.block_until_ready()


def export_weights(out):
    """Writes a checkpoint's parameters in a released layout, with all files needed to load them."""
    if not CHECKPOINT.value:
        raise UserError("Name a trained run: --checkpoint=runs/pro_1b.")
    if LAYOUT.value not in LAYOUTS:
        raise UserError(f"--layout={LAYOUT.value} is for import; export has {list(LAYOUTS)}.")
    layout = LAYOUTS[LAYOUT.value]
    saved = checkpoint.open_saved(CHECKPOINT.value)
    config = saved.about["config"]
    if config is None or saved.about["stage"] == freezing.TOKENIZER:
        raise UserError(f"{CHECKPOINT.value!r} is a part of a model; export needs a whole one.")
    kind = config["model"]["generation"]["kind"]
    abstract = _build_network(config).abstract
    tensors = layout.tensors(kind, abstract)
    stored = checkpoint.param_structs(saved)
    dtype = DTYPE.value or _common_dtype(stored, tensors)
    tokenizer = saved.about["tokenizer"] and text_tokenizer.TextTokenizer(saved.about["tokenizer"])
    texts = layout.config_texts(config, tokenizer, dtype=dtype)
    shapes = stored | abstract
    cpu = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])

    def load(paths, dtype=dtype):
        like = {
            path: jax.ShapeDtypeStruct(shapes[path].shape, dtype, sharding=cpu) for path in paths
        }
        params = checkpoint.load_params(saved, like, weights=WEIGHTS.value or "ema")
        return {path: np.asarray(array) for path, array in params.items()}

    def all_tensors():
        yield from name_map.to_tensors(load, tensors)
        for name, shape in layout.unused(kind, abstract).items():
            path = f"unused/{name}"
            if path in stored:
                yield name, load([path], DTYPE.value or stored[path].dtype)[path]
            else:
                yield name, _placeholder(name, shape, dtype)

    numbers = sum(np.prod(tensor.shape) for tensor in tensors.values())
    with _progress_bar("exporting", numbers * jnp.dtype(dtype).itemsize) as advance:
        files.write_shards(out, all_tensors(), report=advance)
    for name, text in texts.items():
        (out / name).write_text(text)
    if tokenizer is None:
        logging.warning("The checkpoint has no tokenizer: add a tokenizer.json to the export.")


def _common_dtype(stored, tensors):
    """The dtype of the exported parameters if they all have the same, else float32."""
    paths = {path for tensor in tensors.values() for path, _ in tensor.pieces}
    dtypes = {stored[path].dtype.name for path in paths if path in stored}
    return dtypes.pop() if len(dtypes) == 1 else "float32"


def _placeholder(name, shape, dtype):
    """The value of an unused tensor that the checkpoint does not have: zeros, ones for a norm."""
    return (np.ones if name.endswith("norm.weight") else np.zeros)(shape, dtype)


@contextlib.contextmanager
def _progress_bar(name, total):
    """A progress bar with the remaining time; yields the function that advances it."""
    columns = (
        progress.TextColumn(name),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns) as bar:
        task = bar.add_task(name, total=float(total))
        yield lambda amount: bar.advance(task, amount)


if __name__ == "__main__":
    cli.run_commands(main, commands=("import", "export"), usage=__doc__)
