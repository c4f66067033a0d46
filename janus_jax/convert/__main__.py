"""Brings released weights in, and takes trained ones out.

    python -m janus_jax.convert import --layout=deepseek --src=Janus-Pro-1B --out=runs/pro_1b
    python -m janus_jax.convert import --layout=siglip --src=siglip-large-patch16-384 --out=towers/siglip
    python -m janus_jax.convert export --layout=transformers --checkpoint=runs/pro_1b --out=exported

import writes a checkpoint: draw and ask with --checkpoint=DIR, train on from it with --workdir=DIR or, in another
workdir, with --config.init_from=DIR. Whole models come in the layouts deepseek and transformers; towers, from which
stage 1 of the papers starts, in the layouts llama, siglip, llamagen_vq and diffusers_vae. Several towers are given to
training together: --config.init_from=towers/llm,towers/siglip,towers/vq. JanusFlow's release has no autoencoder; name
one to draw: --layout=deepseek --src=JanusFlow-1.3B --vae=sdxl-vae.

export writes a folder that the release's own code (deepseek) or transformers loads.
"""

import contextlib
import importlib
import resource
import time

import jax
import numpy as np
from absl import logging
from rich import progress

from janus_jax import checkpoint, cli, sharding
from janus_jax.convert import files, name_map
from janus_jax.convert.layouts import read_config, read_tower_config, tables, write_config
from janus_jax.data import tokenizer as text_tokenizer
from janus_jax.errors import UserError
from janus_jax.recipe import assembly, freezing

LAYOUT = cli.flags.DEFINE_enum("layout", None, [*tables.LAYOUTS, *tables.TOWERS], "How the weights are named.")
SRC = cli.flags.DEFINE_string("src", None, "import: a folder with weights, config.json and tokenizer.json, or one file.")
VAE = cli.flags.DEFINE_string("vae", None, "import of JanusFlow: the diffusers folder of its autoencoder, SDXL's.")
INTO = cli.flags.DEFINE_string("into", None, "import: where a tower goes; known from its layout without it.")
CONFIG = cli.config_flag()
CHECKPOINT = cli.flags.DEFINE_string("checkpoint", None, "export: a run's workdir, or one of its checkpoints/STEP.")
OUT = cli.flags.DEFINE_string("out", None, "A new folder: a workdir for import, a folder of weights for export.")
DTYPE = cli.flags.DEFINE_enum("dtype", None, ["bfloat16", "float32"], "export: the checkpoint's own without it.")
WEIGHTS = cli.flags.DEFINE_enum("weights", None, ["ema", "raw"], "export: the moving average where there is one, or not.")


def main(command):
    """Runs one of the two commands."""
    if not LAYOUT.value or not OUT.value:
        raise UserError("Name the layout and a new folder: --layout=deepseek --out=DIR.")
    foreign = {"import": (CHECKPOINT, DTYPE, WEIGHTS), "export": (SRC, VAE, INTO)}[command]
    if wrong := [flag.name for flag in foreign if flag.value is not None]:
        raise UserError(f"--{wrong[0]} is not for {command}; --help lists what is.")
    started = time.perf_counter()
    with files.all_or_nothing(OUT.value) as folder:
        {"import": import_weights, "export": export_weights}[command](folder)
    logging.info("It lies in %s", OUT.value)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    logging.info("Done in %.0f s, at most %.1f GiB of memory", time.perf_counter() - started, peak)


def import_weights(out):
    """Reads a whole model or a tower, checks every name, shape and field, and writes a checkpoint."""
    if not SRC.value:
        raise UserError("Name the weights: --src=DIR.")
    folder, layout = files.Folder(SRC.value), LAYOUT.value
    config, abstract, axes, mesh = (_tower if layout in tables.TOWERS else _whole)(layout, folder)
    tensors, idle = _match(layout, config, folder, abstract)
    tokenizer = _tokenizer(folder, config, abstract)
    places = sharding.param_shardings(mesh, abstract, axes)
    placed = _place(folder, tensors, abstract, places)
    placed |= {f"unused/{name}": jax.numpy.asarray(folder.read(name)) for name in idle}
    vae = files.Folder(VAE.value) if VAE.value else None
    if vae:
        placed |= _place(vae, _match("diffusers_vae", None, vae, abstract)[0], abstract, places)
    if vae or layout == "diffusers_vae":
        scale = np.float32(read_tower_config.latent_scale(vae or folder))
        placed["generation/tokenizer/scale"] = jax.device_put(scale, places["generation/tokenizer/scale"])
    if lacking := sorted({"/".join(path.split("/")[:2]) for path in abstract.keys() - placed.keys()}):
        logging.warning("%s does not hold %s", folder.path, lacking)
    about = {"stage": freezing.IMPORTED, "stage_start": 0, "config": cli.plain(config), "tokenizer": tokenizer, "data": None}
    checkpoint.save_imported(out, params=placed, about=about)
    if tokenizer:
        (out / "tokenizer.json").write_text(tokenizer)
    size = sum(a.nbytes for a in placed.values()) / 2**30
    logging.info("%d parameters (%.2f GiB) from %d tensors", len(placed), size, len(folder.held))


def _whole(layout, folder):
    """Config, parameters' shapes, their axes and the mesh of a whole model."""
    if INTO.value:
        raise UserError(f"--into is for towers; the layout {layout} holds the whole model.")
    model = read_config.read_janus(layout, folder)
    if VAE.value:
        tower = read_tower_config.read_tower("diffusers_vae", files.Folder(VAE.value))
        if clash := read_config.differences({"generation": {"kind": tower["generation"]["kind"]}}, model, where="by --vae"):
            raise UserError(f"--vae is not for these weights: {clash[0]}.")
        model = read_config.merged(model, tower)
    config = _pick_config(model)
    network = assembly.build_network(config, "stage_3")
    return config, network.abstract, network.axes, sharding.make_mesh(**config["mesh"])


def _tower(layout, folder):
    """The same of a tower, which has no config of its own."""
    into = tables.INTO[layout]
    if VAE.value:
        raise UserError("--vae goes with a whole model; an autoencoder alone is imported with --layout=diffusers_vae.")
    if INTO.value not in (None, into):
        raise UserError(f"The layout {layout} goes into {into}, not into {INTO.value}.")
    model = read_tower_config.read_tower(layout, folder)
    if CONFIG.value is not None:
        read_config.check_same(model, CONFIG.value.to_dict()["model"], where=SRC.value)
    logging.info("The %s tower: %s", layout, read_config.flat(model))
    for note in read_tower_config.notes(layout, folder):
        logging.info("%s", note)
    return None, *assembly.build_tower(layout, model), sharding.make_mesh()


def _pick_config(model):
    """The config page of a model: the one that --config names, or the page of these sizes.

    Sizes that no page has are taken as they are, with the recipe of the first page.
    """
    if CONFIG.value is not None:
        config = CONFIG.value.to_dict()
        read_config.check_same(model, config["model"], where=SRC.value)
        return config
    pages = tables.PAGES[model["generation"]["kind"]]
    for name in pages:
        config = _page(name)
        differing = read_config.differences(model, config["model"])
        if not differing:
            logging.info("The sizes are those of configs/%s.py", name)
            if name == "pro_1b":
                logging.info("Janus-1.3B has the same sizes: --config=configs/janus_1p3b.py takes its roles and recipe")
            return config
    logging.warning("No page of configs/ has these sizes, and the checkpoint carries them: %s", "; ".join(differing))
    config = _page(pages[0])
    return config | {"model": read_config.merged(config["model"], model)}


def _page(name):
    return importlib.import_module(f"configs.{name}").get_config().to_dict()


def _match(layout, config, folder, abstract):
    """What every tensor of the folder is to us: {their name: names.Tensor}, and the unused ones that it holds."""
    if layout in tables.LAYOUTS:
        kind = config["model"]["generation"]["kind"]
        tensors = name_map.spell_out(tables.JANUS[layout, kind], tables.stored(kind, abstract), layout=layout)
        unused = tables.unused(layout, kind, abstract)
        idle = [name for name in unused if name in folder.held]
        pool = [name for name in unused if "attn_pool" in name]
        if lacking := [name for name in pool if name not in idle] if set(pool) & set(idle) else []:
            raise UserError(f"{str(folder.path)!r} holds a part of SigLIP's pooling head and misses {lacking[0]}.")
    else:
        stored = tables.stored_tower(layout, abstract)
        spelt = [name_map.spell_out(table, stored, layout=layout) for table in tables.TOWERS[layout]]
        tensors = max(spelt, key=lambda tensors: len(tensors.keys() & folder.held.keys()))
        unused, idle = {name: None for name in folder.held if tables.is_idle(layout, name)}, []
    name_map.check(tensors, folder.held, unused=unused, layout=layout, where=repr(str(folder.path)))
    return tensors, idle


def _tokenizer(folder, config, abstract):
    """The folder's tokenizer.json, for a language model with Janus's special tokens; None where there is none."""
    file = folder.path / "tokenizer.json"
    rows = abstract["llm/embed"].shape[0] if "llm/embed" in abstract else None
    if rows is None:
        return None
    if not file.is_file():
        logging.warning("%s has no tokenizer.json; name one in training with --config.data.tokenizer=FILE", folder.path)
        return None
    if config is not None:
        tokenizer = text_tokenizer.load(file)
    else:
        tokenizer, added = text_tokenizer.complete(file)
        logging.info("Added to the tokenizer: %s", ", ".join(added) or "nothing")
    if tokenizer.size > rows:
        raise UserError(f"The tokenizer has {tokenizer.size} tokens, the embedding table {rows} rows.")
    return tokenizer.text


def _place(folder, tensors, abstract, places):
    """Reads parameter by parameter onto the mesh; no more than one of them waits in memory."""
    placed = {}
    with _bar("importing", sum(np.prod(a.shape) for a in abstract.values())) as advance:
        for path, whole in name_map.gather(folder.read, tensors, abstract):
            pick = lambda index, whole=whole: whole[index]
            placed[path] = jax.make_array_from_callback(whole.shape, places[path], pick).block_until_ready()
            advance(whole.size)
    return placed


def export_weights(out):
    """Writes a checkpoint's parameters in a released layout, with everything that loads them."""
    if not CHECKPOINT.value:
        raise UserError("Name a trained run: --checkpoint=runs/pro_1b.")
    if LAYOUT.value not in tables.LAYOUTS:
        raise UserError(f"--layout={LAYOUT.value} is for import; export knows {list(tables.LAYOUTS)}.")
    saved, layout = checkpoint.open_saved(CHECKPOINT.value), LAYOUT.value
    config = saved.about["config"]
    if config is None or saved.about["stage"] == freezing.TOKENIZER:
        raise UserError(f"{CHECKPOINT.value!r} holds a part of a model; only whole ones are exported.")
    held = checkpoint.param_structs(saved)
    kind, network = config["model"]["generation"]["kind"], assembly.build_network(config, "stage_3")
    if (layout, kind) not in tables.JANUS:
        raise UserError(f"The {layout} layout has no model that draws by {kind}; known: {sorted(tables.JANUS)}.")
    stored = tables.stored(kind, network.abstract)
    dtypes = {held[path].dtype.name for path in stored if path in held}
    dtype = DTYPE.value or (dtypes.pop() if len(dtypes) == 1 else "float32")
    tensors = name_map.spell_out(tables.JANUS[layout, kind], stored, layout=layout)
    tokenizer = saved.about["tokenizer"] and text_tokenizer.TextTokenizer(saved.about["tokenizer"])
    place = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])

    def load(paths, dtype=dtype):
        like = held | network.abstract
        wanted = {path: jax.ShapeDtypeStruct(like[path].shape, dtype, sharding=place) for path in paths}
        loaded = checkpoint.load_params(saved, wanted, weights=WEIGHTS.value or "ema")
        return {path: np.asarray(a) for path, a in loaded.items()}

    def everything():
        yield from name_map.scatter(load, tensors)
        for name, shape in tables.unused(layout, kind, network.abstract).items():
            kept = f"unused/{name}"
            as_it_came = DTYPE.value or held.get(kept, jax.ShapeDtypeStruct(shape, dtype)).dtype
            yield name, load([kept], as_it_came)[kept] if kept in held else tables.synthesise(name, shape, dtype)

    total = sum(np.prod(t.shape) for t in tensors.values()) * np.dtype(jax.numpy.dtype(dtype)).itemsize
    with _bar("exporting", total) as advance:
        texts = write_config.write(layout, config, tokenizer, dtype=dtype)
        files.write(out, everything(), texts=texts, show=advance)
    if tokenizer is None:
        logging.warning("The checkpoint carries no tokenizer: put one beside the weights.")


@contextlib.contextmanager
def _bar(name, total):
    """A progress bar with an ETA; gives the function that moves it on."""
    columns = (progress.TextColumn(name), progress.BarColumn(), progress.TaskProgressColumn())
    times = (progress.TimeElapsedColumn(), progress.TextColumn("ETA"), progress.TimeRemainingColumn())
    with progress.Progress(*columns, *times) as bar:
        task = bar.add_task(name, total=float(total))
        yield lambda amount: bar.advance(task, amount)


if __name__ == "__main__":
    cli.run_commands(main, commands=("import", "export"), usage=__doc__)
