"""Caches of what the frozen picture tokenizer makes of a source: codes instead of pictures, or latents beside them."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import rich.progress

from janus_jax import checkpoint, fingerprint, sharding
from janus_jax.data import images
from janus_jax.data.bad_records import BadRecords, malformed_is_bad
from janus_jax.data.files import make_folder, write_json
from janus_jax.data.images import BadRecord
from janus_jax.data.sources import Source
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError
from janus_jax.objectives.tokenizer import Tokenizer
from janus_jax.recipe.data import open_sources
from janus_jax.shapes import world

PER_FILE, BATCH = 1024, 32


def make(field, out, *, checkpoint_path, source_name, config=None, seed=0):
    """Runs the tokenizer over a source on all devices of this host, file after file.

    Args:
      field: 'latents' or 'codes', what the records get.
      out: folder.
      checkpoint_path: what holds the tokenizer.
      source_name: of config.data.sources.
      config: resolved config that names model and sources; the checkpoint's own without it.
      seed: of random crops.

    Returns:
      what about.json says: field, source, path, picture size, crop, seed, precision and the tokenizer's fingerprint; and
      the records left out.

    Raises:
      UserError: for a model whose way of drawing keeps something else, and for a folder made otherwise.
    """
    out, saved = Path(out), checkpoint.open_saved(checkpoint_path)
    config = config or saved.about["config"]
    if config is None:
        raise UserError(f"{str(checkpoint_path)!r} holds a tower alone: name the model it belongs to with --config.")
    if source_name not in config["data"]["sources"]:
        raise UserError(f"The config has no source {source_name!r}; known: {sorted(config['data']['sources'])}.")
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    everywhere, spread = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    network = Tokenizer.build_network(config["model"], dtype=None)
    batch = BATCH * mesh.size
    wanted = {p: jax.ShapeDtypeStruct(a.shape, "float32", sharding=everywhere) for p, a in network.abstract.items()}
    params = checkpoint.load_params(saved, wanted)  # not an average of them: a next stage starts from these
    size, crop = config["model"]["generation"]["image_size"], config["data"]["crop"]
    run = jax.jit(lambda params, pictures: network.merge(params).tokenizer.cache(pictures), out_shardings=spread)
    kept = jax.eval_shape(run, params, jax.ShapeDtypeStruct((batch, size, size, 3), "uint8"))
    if field not in kept:
        raise UserError(f"What this model keeps of a picture is {sorted(kept)}, not {field}.")

    source = Source(source_name, **config["data"]["sources"][source_name])
    about = {
        "field": field, "source": source_name, **_described(config, source), "size": size, "crop": crop, "seed": seed,
        "precision": "float32", "fingerprint": fingerprint.fingerprint(params),
    }  # fmt: skip
    _check_folder(out, about)
    bad = BadRecords(1.0, sources={source_name: source}, report=out / "bad_records.jsonl")
    tokenize = lambda pictures: jax.tree.map(np.asarray, run(params, jax.device_put(pictures, spread)))[field]
    files = range(0, len(source), PER_FILE)
    todo = [(start, out / f"{start // PER_FILE:05d}-of-{len(files):05d}.array_record") for start in files]
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns) as bar, ThreadPoolExecutor() as pool:
        task = bar.add_task(f"{field} of {source_name}", total=len(source))
        for start, path in todo:
            indices = range(start, min(start + PER_FILE, len(source)))
            if path.exists():
                bar.advance(task, len(indices))
                continue
            crops = [np.random.default_rng((seed, i)).random() if crop == "random" else None for i in indices]
            read = pool.map(lambda index, place: _cropped(source, index, size=size, crop=place), indices, crops)
            good = _good(bar.track(read, task_id=task, total=None), source_name, bad)
            write_array_record(path.with_suffix(".partial"), _with_field(good, field, tokenize, batch))
            path.with_suffix(".partial").rename(path)
    return about | {"records left out": bad.reasons.total()}


def copy(out, *, source_name, config):
    """Writes a source of any kind as ArrayRecord files under our field names; unusable records are left out.

    Returns:
      where from, how many records, how many left out.
    """
    out, source = Path(out), open_sources(config, [source_name])[source_name]
    about = {"source": source_name, **_described(config, source)}
    _check_folder(out, about)
    bad = BadRecords(1.0, sources={source_name: source}, report=out / "bad_records.jsonl")
    files = range(0, len(source), PER_FILE)
    for start in rich.progress.track(files, description=f"records of {source_name}"):
        path = out / f"{start // PER_FILE:05d}-of-{len(files):05d}.array_record"
        if not path.exists():
            records = _readable(source, range(start, min(start + PER_FILE, len(source))), bad)
            write_array_record(path.with_suffix(".partial"), records)
            path.with_suffix(".partial").rename(path)
    return about | {"records left out": bad.reasons.total()}


def _described(config, source):
    """What a copy depends on: the source's own config, its records, and the files that they come to."""
    own = source.pictures | {k: v for k, v in config["data"]["sources"][source.name].items() if v is not None}
    return {**json.loads(json.dumps(own)), "records": len(source), "files": -(-len(source) // PER_FILE)}


def _readable(source, indices, bad):
    for index in indices:
        try:
            with malformed_is_bad():
                record = source[index]
                pictures = {k: _encoded(record[k]) for k in ("image", "images") if record.get(k) is not None}
        except BadRecord as error:
            bad.bad(f"{source.name}/0/{index}", error)
            continue
        yield record | pictures


def _encoded(value):
    """The bytes of a picture that a source gives with options of its own, or of a list of them."""
    return [_encoded(v) for v in value] if isinstance(value, list) else images.as_picture(value).encoded


def _check_folder(out, about):
    """Starts a folder with its about.json, or makes sure that it was started the same way."""
    file = out / "about.json"
    if file.is_file() and (before := json.loads(file.read_text())) != about:
        changed = [name for name in about if before.get(name) != about[name]]
        raise UserError(f"{str(out)!r} was made with another {changed[0]} ({before.get(changed[0])}); name a new folder.")
    make_folder(out)
    write_json(file, about)


def _cropped(source, index, *, size, crop):
    """A record without its picture, and its square as pixels; or the BadRecord that it is."""
    try:
        with malformed_is_bad():
            record = source[index]
            if record.get("image") is None:
                raise BadRecord("no field 'image'")
            picture = images.opened(record["image"])
            images.check_drawable(picture.opened)
            pixels = images.for_generation(images.decode(picture), size=size, crop=crop)
    except BadRecord as error:
        return index, error, None
    return index, {k: v for k, v in record.items() if k != "image"}, pixels


def _good(read, source_name, bad):
    """Records with their squares; unusable ones go into the report."""
    for index, record, pixels in read:
        if pixels is None:
            bad.bad(f"{source_name}/0/{index}", record)
        else:
            yield record, pixels


def _with_field(pairs, field, tokenize, batch):
    """Records with what the tokenizer makes of their squares: codes instead of them, latents beside them."""
    while some := list(itertools.islice(pairs, batch)):
        pictures = np.stack([pixels for _, pixels in some] + [some[-1][1]] * (batch - len(some)))
        for (record, pixels), value in zip(some, tokenize(pictures), strict=False):
            array = {"data": value.tobytes(), "dtype": value.dtype.name, "shape": list(value.shape)}
            yield record | ({"image": world.encode_png(pixels)} if field == "latents" else {}) | {field: array}
