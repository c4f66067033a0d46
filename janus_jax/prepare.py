"""Makes data sets, and keeps what the frozen picture tokenizer makes of them.

    python -m janus_jax.prepare shapes --out=data/shapes
    python -m janus_jax.prepare openmoji --out=data/openmoji
    python -m janus_jax.prepare latents --checkpoint=runs/flow --source=scenes --out=data/scenes_latents
    python -m janus_jax.prepare codes --checkpoint=runs/pro_1b --source=pictures --out=data/pictures_codes

shapes     procedural scenes in GenEval's six categories, with questions, texts and held-out combinations
openmoji   emoji with their names and groups (CC BY-SA 4.0); needs `pip install -r requirements-openmoji.txt`
latents    a source of pictures to draw with its latents beside them (JanusFlow), cropped once and for all
codes      a source of pictures to draw with its codes in their place (Janus)

A cache is a folder of ArrayRecord files, a source like any other: --config.data.sources.NAME.path=DIR. Its model and
sources are those of the checkpoint's config, or of --config. A cut-off run goes on with the next file.
"""

import hashlib
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import rich.progress
from absl import logging

from janus_jax import assembly, checkpoint, cli, stages
from janus_jax.data import image_ops, openmoji, shapes, shapes_files
from janus_jax.data.image_ops import BadRecord
from janus_jax.data.sources import Source, write_array_record, write_json
from janus_jax.errors import UserError

OUT = cli.flags.DEFINE_string("out", None, "Folder to write.")
SEED = cli.flags.DEFINE_integer("seed", 0, "shapes: seed of the world. latents: seed of random crops.")
SCALE = cli.flags.DEFINE_float("scale", 1.0, "shapes: multiplies the number of training records.")
CONFIG = cli.config_flag()
CHECKPOINT = cli.flags.DEFINE_string("checkpoint", None, "latents, codes: what holds the trained or imported tokenizer.")
SOURCE = cli.flags.DEFINE_string("source", None, "latents, codes: a name of config.data.sources.")
PER_FILE, BATCH = 4096, 32


def main(command):
    """Makes one set and prints its counts."""
    if not OUT.value:
        raise UserError(f"Name a folder: --out=data/{command}.")
    if command == "shapes":
        about = shapes_files.write(OUT.value, seed=SEED.value, scale=SCALE.value)
    elif command == "openmoji":
        about = openmoji.write(OUT.value)
    else:
        about = cache(command, Path(OUT.value))
    for name, value in about.items():
        logging.info("%s: %s", name, value)


def cache(field, out):
    """Runs the tokenizer over a source, file after file.

    Args:
      field: 'latents' or 'codes', what the records get.
      out: folder.

    Returns:
      what about.json says: the source, its records, the crop, and a fingerprint of tokenizer, size and crop.

    Raises:
      UserError: for a model whose way of drawing keeps something else, and for a folder made otherwise.
    """
    if not CHECKPOINT.value or not SOURCE.value:
        raise UserError("Name the tokenizer and what to read: --checkpoint=runs/flow --source=scenes.")
    saved = checkpoint.open_saved(CHECKPOINT.value)
    config = CONFIG.value.to_dict() if CONFIG.value is not None else saved.about["config"]
    if config is None:
        raise UserError(f"{CHECKPOINT.value!r} holds a tower alone: name the model it belongs to with --config.")
    if SOURCE.value not in config["data"]["sources"]:
        raise UserError(f"The config has no source {SOURCE.value!r}; known: {sorted(config['data']['sources'])}.")
    network, place = assembly.build_network(config, stages.TOKENIZER), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {p: jax.ShapeDtypeStruct(a.shape, "float32", sharding=place) for p, a in network.abstract.items()}
    params = checkpoint.load_params(saved, wanted, weights="ema")
    size, crop = config["model"]["generation"]["image_size"], config["data"]["crop"]
    run = jax.jit(lambda params, pictures: network.merge(params).path.cache(pictures))
    kept = jax.eval_shape(run, params, jax.ShapeDtypeStruct((BATCH, size, size, 3), "uint8"))
    if field not in kept:
        raise UserError(f"What this model keeps of a picture is {sorted(kept)}, not {field}.")

    source = Source(SOURCE.value, **config["data"]["sources"][SOURCE.value])
    about = {"source": SOURCE.value, "size": size, "crop": crop, "seed": SEED.value, "fingerprint": _fingerprint(params)}
    _check_folder(out, about)
    bad, files = 0, range(0, len(source), PER_FILE)
    for start in rich.progress.track(files, description=f"{field} of {SOURCE.value}"):
        path = out / f"{start // PER_FILE:05d}-of-{len(files):05d}.array_record"
        if path.exists():
            continue
        records = []
        for index in range(start, min(start + PER_FILE, len(source))):
            try:
                records.append(_cropped(source[index], index, size=size, crop=crop))
            except BadRecord as error:
                logging.warning("Left out %s/%d: %s", SOURCE.value, index, error)
                bad += 1
        made = itertools.chain.from_iterable(
            _with_field(records[i : i + BATCH], field, lambda pictures: run(params, pictures))
            for i in range(0, len(records), BATCH)
        )
        write_array_record(path.with_suffix(".partial"), made)
        path.with_suffix(".partial").rename(path)
    return about | {"records left out": bad}


def _fingerprint(params):
    """Hash of a tokenizer's weights."""
    digest = hashlib.sha256()
    for path in sorted(params):
        digest.update(path.encode() + np.asarray(params[path]).tobytes())
    return digest.hexdigest()[:16]


def _check_folder(out, about):
    """Starts a folder with its about.json, or makes sure that it was started the same way."""
    file = out / "about.json"
    if file.is_file() and (before := json.loads(file.read_text())) != about:
        changed = [name for name in about if before.get(name) != about[name]]
        raise UserError(f"{str(out)!r} was made with another {changed[0]} ({before.get(changed[0])}); name a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, about)


def _cropped(record, index, *, size, crop):
    """The record, and its square as pixels."""
    if record.get("image") is None:
        raise BadRecord("no field 'image'")
    place = np.random.default_rng((SEED.value, index)).random() if crop == "random" else None
    pixels = image_ops.for_generation(image_ops.decode(record["image"]), size=size, crop=place)
    return {k: v for k, v in record.items() if k != "image"}, pixels


def _with_field(pairs, field, run):
    """Records with what the tokenizer makes of their squares: codes instead of them, latents beside them."""
    pictures = np.stack([pixels for _, pixels in pairs] + [pairs[-1][1]] * (BATCH - len(pairs)))
    for (record, pixels), value in zip(pairs, np.asarray(run(pictures)[field]), strict=False):
        if field == "codes":
            yield record | {"codes": value.tolist()}
        else:
            array = {"data": value.tobytes(), "dtype": value.dtype.name, "shape": list(value.shape)}
            yield record | {"image": shapes.encode_png(pixels), "latents": array}


if __name__ == "__main__":
    cli.run_commands(main, commands=("shapes", "openmoji", "latents", "codes"), usage=__doc__)
