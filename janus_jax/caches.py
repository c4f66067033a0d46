"""Caches of what the frozen picture tokenizer makes of a source: codes instead of pictures, or latents beside them."""

import hashlib
import itertools
import json
from pathlib import Path

import jax
import numpy as np
import rich.progress
from absl import logging

from janus_jax import assembly, checkpoint, stages
from janus_jax.data import image_ops, shapes
from janus_jax.data.image_ops import BadRecord
from janus_jax.data.sources import Source, write_array_record, write_json
from janus_jax.errors import UserError

PER_FILE, BATCH = 4096, 32


def make(field, out, *, checkpoint_path, source_name, config=None, seed=0):
    """Runs the tokenizer over a source, file after file.

    Args:
      field: 'latents' or 'codes', what the records get.
      out: folder.
      checkpoint_path: what holds the tokenizer.
      source_name: of config.data.sources.
      config: resolved config that names model and sources; the checkpoint's own without it.
      seed: of random crops.

    Returns:
      what about.json says: source, picture size, crop, seed and the tokenizer's fingerprint; and the records left out.

    Raises:
      UserError: for a model whose way of drawing keeps something else, and for a folder made otherwise.
    """
    out, saved = Path(out), checkpoint.open_saved(checkpoint_path)
    config = config or saved.about["config"]
    if config is None:
        raise UserError(f"{str(checkpoint_path)!r} holds a tower alone: name the model it belongs to with --config.")
    if source_name not in config["data"]["sources"]:
        raise UserError(f"The config has no source {source_name!r}; known: {sorted(config['data']['sources'])}.")
    network, place = assembly.build_network(config, stages.TOKENIZER), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {p: jax.ShapeDtypeStruct(a.shape, "float32", sharding=place) for p, a in network.abstract.items()}
    params = checkpoint.load_params(saved, wanted)  # not an average of them: a next stage starts from these
    size, crop = config["model"]["generation"]["image_size"], config["data"]["crop"]
    run = jax.jit(lambda params, pictures: network.merge(params).path.cache(pictures))
    kept = jax.eval_shape(run, params, jax.ShapeDtypeStruct((BATCH, size, size, 3), "uint8"))
    if field not in kept:
        raise UserError(f"What this model keeps of a picture is {sorted(kept)}, not {field}.")

    source = Source(source_name, **config["data"]["sources"][source_name])
    about = {"source": source_name, "size": size, "crop": crop, "seed": seed, "fingerprint": _fingerprint(params)}
    _check_folder(out, about)
    bad, files = 0, range(0, len(source), PER_FILE)
    for start in rich.progress.track(files, description=f"{field} of {source_name}"):
        path = out / f"{start // PER_FILE:05d}-of-{len(files):05d}.array_record"
        if path.exists():
            continue
        records = []
        for index in range(start, min(start + PER_FILE, len(source))):
            try:
                rng = np.random.default_rng((seed, index)) if crop == "random" else None
                records.append(_cropped(source[index], size=size, rng=rng))
            except BadRecord as error:
                logging.warning("Left out %s/%d: %s", source_name, index, error)
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


def _cropped(record, *, size, rng):
    """The record, and its square as pixels; without an rng the one in the middle."""
    if record.get("image") is None:
        raise BadRecord("no field 'image'")
    image_ops.check_drawable(record["image"])
    place = None if rng is None else rng.random()
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
