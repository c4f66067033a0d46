"""`latents`, `codes` and `records`: copies of a source as ArrayRecord files.

A cache of codes has the codes of the frozen image tokenizer instead of the images; a cache of
latents has the latents in addition to the cropped images. A copy has a fixed number of records per
file, and a run that was stopped resumes with the next file.
"""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import rich.progress

from janus_jax import checkpoint, fingerprint, sharding
from janus_jax.data import images
from janus_jax.data.bad_records import BadRecords, malformed_as_bad_record
from janus_jax.data.files import make_folder, write_json
from janus_jax.data.images import BadRecord, encode_png
from janus_jax.data.sources import Source
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.errors import UserError
from janus_jax.objectives.tokenizer import Tokenizer
from janus_jax.recipe.data import open_sources

PER_FILE = 1024  # records
IMAGES_PER_DEVICE = 32  # that are tokenized at once


def make(field, out, *, checkpoint_path, source_name, config=None, seed=0):
    """Caches the codes or latents of a source, on all devices of this host.

    Args:
      field: 'latents' or 'codes', the field that records get.
      out: folder.
      checkpoint_path: a checkpoint with the tokenizer.
      source_name: a key of config.data.sources.
      config: resolved config with model and sources; by default the checkpoint's own.
      seed: of random crops.

    Returns:
      the content of about.json, which says what the cache depends on, and `records left out`.

    Raises:
      UserError: for a model that caches the other field, and for a folder of another cache.
    """
    out = Path(out)
    saved = checkpoint.open_saved(checkpoint_path)
    config = config or saved.about["config"]
    if config is None:
        raise UserError(
            f"{str(checkpoint_path)!r} holds a single tower; name its model's config, --config."
        )
    if source_name not in config["data"]["sources"]:
        known = sorted(config["data"]["sources"])
        raise UserError(f"The config has no source {source_name!r}; known: {known}.")
    batch = IMAGES_PER_DEVICE * jax.device_count()
    tokenize, shape, digest = _load_tokenizer(saved, config["model"], field, batch=batch)
    size = config["model"]["generation"]["image_size"]
    crop = config["data"]["crop"]
    source = Source(source_name, **config["data"]["sources"][source_name])
    about = {
        "field": field,
        "source": source_name,
        **_describe(config, source),
        "size": size,
        "crop": crop,
        "seed": seed,
        "precision": "float32",
        "shape": shape,
        "fingerprint": digest,
    }
    _start_folder(out, about)
    bad = BadRecords(1.0, sources={source_name: source}, report=out / "bad_records.jsonl")
    columns = rich.progress.Progress.get_default_columns()
    columns = (*columns, rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns) as bar, ThreadPoolExecutor() as pool:
        task = bar.add_task(f"{field} of {source_name}", total=len(source))
        for path, indices in _files(out, len(source)):
            if path.exists():
                bar.advance(task, len(indices))
                continue
            offsets = [None] * len(indices)
            if crop == "random":
                offsets = [np.random.default_rng((seed, i)).random() for i in indices]
            read = pool.map(
                lambda index, offset: _read_square(source, index, size=size, crop=offset),
                indices,
                offsets,
            )
            squares = _usable(bar.track(read, task_id=task, total=None), source_name, bad)
            _write_file(path, _with_field(squares, field, tokenize, batch))
    return about | {"records left out": bad.reasons.total()}


def copy(out, *, source_name, config):
    """Copies a source of any kind under our field names, without its unusable records.

    Returns:
      the content of about.json, and `records left out`.
    """
    out = Path(out)
    source = open_sources(config, [source_name])[source_name]
    about = {"source": source_name, **_describe(config, source)}
    _start_folder(out, about)
    bad = BadRecords(1.0, sources={source_name: source}, report=out / "bad_records.jsonl")
    files = list(_files(out, len(source)))
    for path, indices in rich.progress.track(files, description=f"records of {source_name}"):
        if not path.exists():
            _write_file(path, _usable_records(source, indices, bad))
    return about | {"records left out": bad.reasons.total()}


def _load_tokenizer(saved, model, field, *, batch):
    """A checkpoint's tokenizer on all devices of this host.

    Args:
      saved: checkpoint.Saved.
      model: `config.model`.
      field: 'latents' or 'codes'.
      batch: images that are tokenized at once.

    Returns:
      a function, list of at most `batch` squares uint8[size, size, 3] -> array with one row per
      image; the shape of a row; and the tokenizer's fingerprint.
    """
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1)
    replicated, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    network = Tokenizer.build_network(model, dtype=None)
    abstract = {
        path: jax.ShapeDtypeStruct(leaf.shape, "float32", sharding=replicated)
        for path, leaf in network.abstract.items()
    }
    # The raw parameters and not their moving average, since the next stage starts from them.
    params = checkpoint.load_params(saved, abstract)

    def cache(params, pixels):
        return network.merge(params).tokenizer.cache(pixels)

    size = model["generation"]["image_size"]
    fields = jax.eval_shape(cache, params, jax.ShapeDtypeStruct((batch, size, size, 3), "uint8"))
    if field not in fields:
        raise UserError(f"This model caches {sorted(fields)}, not {field}.")
    jitted = jax.jit(cache, out_shardings=split)

    def tokenize(squares):
        padded = np.stack([*squares, *[squares[-1]] * (batch - len(squares))])
        return np.asarray(jitted(params, jax.device_put(padded, split))[field])[: len(squares)]

    return tokenize, list(fields[field].shape[1:]), fingerprint.fingerprint(params)


def _describe(config, source):
    """What a copy depends on: the source's settings and size, and the number of files."""
    settings = {k: v for k, v in config["data"]["sources"][source.name].items() if v is not None}
    settings = json.loads(json.dumps(source.image_options | settings))  # tuples become lists
    return {**settings, "records": len(source), "files": -(-len(source) // PER_FILE)}


def _files(out, count):
    """(path, record indices) of every file of a copy of `count` records."""
    starts = range(0, count, PER_FILE)
    for number, start in enumerate(starts):
        path = out / f"{number:05d}-of-{len(starts):05d}.array_record"
        yield path, range(start, min(start + PER_FILE, count))


def _write_file(path, records):
    """Writes an ArrayRecord file that exists under its name only when it is complete."""
    partial = path.with_suffix(".partial")
    write_array_record(partial, records)
    partial.rename(path)


def _usable_records(source, indices, bad):
    """The records with their images as bytes; unusable ones are added to the report."""
    for index in indices:
        try:
            with malformed_as_bad_record():
                record = source[index]
                encoded = {
                    field: _encoded(record[field])
                    for field in ("image", "images")
                    if record.get(field) is not None
                }
        except BadRecord as error:
            bad.count_bad(f"{source.name}/0/{index}", error)
            continue
        yield record | encoded


def _encoded(value):
    """The bytes of an image that may be an EncodedImage, or of a list of them."""
    if isinstance(value, list):
        return [_encoded(image) for image in value]
    return images.as_encoded_image(value).encoded


def _start_folder(out, about):
    """Writes about.json into a new folder; an existing one must have the same content.

    Raises:
      UserError: for a folder that was made from other data or with other settings.
    """
    file = out / "about.json"
    if file.is_file():
        before = json.loads(file.read_text())
        if "field" in before:
            before.setdefault("shape", about.get("shape"))  # caches of version 0.1 lack it
        changed = [name for name in about | before if before.get(name) != about.get(name)]
        if changed:
            name = changed[0]
            raise UserError(
                f"{str(out)!r} was made with another {name} ({before.get(name)}); "
                "name a new folder."
            )
    make_folder(out)
    write_json(file, about)


def _read_square(source, index, *, size, crop):
    """Reads a record and crops its image: index, record without `image`, uint8[size, size, 3].

    For an unusable record: index, BadRecord, None.
    """
    try:
        with malformed_as_bad_record():
            record = source[index]
            if record.get("image") is None:
                raise BadRecord("no field 'image'")
            image = images.read_header(record["image"])
            images.check_aspect_ratio(image.pil_image)
            square = images.for_generation(images.decode(image), size=size, crop=crop)
    except BadRecord as error:
        return index, error, None
    return index, {k: v for k, v in record.items() if k != "image"}, square


def _usable(read, source_name, bad):
    """The usable results of `_read_square`: (record, square); the others go into the report."""
    for index, record, square in read:
        if square is None:
            bad.count_bad(f"{source_name}/0/{index}", record)
        else:
            yield record, square


def _with_field(pairs, field, tokenize, batch):
    """Records with their codes, or with their square as PNG and its latents."""
    while some := list(itertools.islice(pairs, batch)):
        values = tokenize([square for _, square in some])
        for (record, square), value in zip(some, values, strict=True):
            array = {"data": value.tobytes(), "dtype": value.dtype.name, "shape": list(value.shape)}
            image = {"image": encode_png(square)} if field == "latents" else {}
            yield record | image | {field: array}
