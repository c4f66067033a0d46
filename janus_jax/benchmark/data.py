"""Times the data pipeline on this host, from records to packed batches, and decoding alone."""

import io
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from janus_jax import cli, sharding
from janus_jax.benchmark import workload
from janus_jax.benchmark.workload import Workload
from janus_jax.data import images, synthetic
from janus_jax.data.sources.array_record import write_array_record
from janus_jax.recipe.checks import complete
from janus_jax.recipe.data import build_pipeline

WARM_UP = 2  # batches; the first fills every shard's window
DECODED = 64  # images of each source that decoding alone is timed on


def run(config, dims, *, mixture, rows, codes, cores, repeats, accelerator_rate):
    """Times batches of a config's data, a dimensions file or made-up records: a dict of figures.

    Args:
      config: ConfigDict, or None.
      dims: path of a dimensions file, or None.
      mixture, rows: as in `workload.set_mixture`, or None.
      codes: whether made-up images to generate come as cached codes.
      cores: threads that decode.
      repeats: timed batches.
      accelerator_rate: tokens per second that one accelerator consumes.
    """
    with tempfile.TemporaryDirectory() as folder:
        if dims:
            work = workload.from_dims(dims)
            workload.set_mixture(work.settings, work.lengths, mixture=mixture, rows=rows or 8)
            work.settings["batch"] = 4 * work.settings["rows"]
            stage = work.stage()
            pipeline = workload.packed_batches(stage, work.lengths, workers=cores)
        else:
            work = _configured(config, Path(folder), mixture=mixture, rows=rows, codes=codes)
            work.settings["batch"] = work.config["data"]["shards"] * work.settings["rows"]
            work.config["data"]["workers"] = cores
            stage = work.stage(mesh=sharding.make_mesh(devices=jax.devices()[:1]))
            pipeline, _ = build_pipeline(stage, host=(0, 1))
        seconds, packed = _time_batches(pipeline, repeats)
        decoding = _decoding_rates(
            pipeline.sources, stage, cached=codes or bool(dims), cores=cores, repeats=repeats
        )
    median = float(np.median(seconds))
    mean = lambda name: float(np.mean([p.stats[name] for p in packed]))
    figures = {
        "name": "data",
        "seconds_median": median,
        "min": min(seconds),
        "max": max(seconds),
        "n": len(seconds),
        "tokens_real": mean("tokens"),
        "tokens_padded": packed[0].batch.tokens.size,
        "tokens_per_second": mean("tokens") / median,
        "records_per_second": float(np.mean([len(p.record_ids) for p in packed])) / median,
        "images_per_second": (mean("und_pictures") + mean("gen_pictures")) / median,
        "token_fill": mean("token_fill"),
        "slot_fill": mean("slot_fill"),
        "cores": cores,
    }
    if decoding:
        decoded = 0 if packed[0].stats["cached"] else mean("gen_pictures")
        figures |= _compare_decoding(decoding, mean("und_pictures"), decoded, median)
    figures["cores_for_one_accelerator"] = cores * accelerator_rate / figures["tokens_per_second"]
    if work.lengths:
        figures |= workload.fill_figures(stage, work.lengths)
    settings = stage.settings
    return figures | {
        "mixture": list(settings["mixture"]),
        "rows": settings["rows"],
        "length": settings["length"],
        "mfu": None,
        "device": "cpu",
    }


def _time_batches(pipeline, repeats):
    """Seconds of each of `repeats` batches after the warm-up, and the batches."""
    for _ in range(WARM_UP):
        next(pipeline)
    seconds, packed = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        packed.append(next(pipeline))
        seconds.append(time.perf_counter() - start)
    return seconds, packed


def _configured(config, folder, *, mixture, rows, codes):
    """The Workload of a config with its own data; for None, of made-up records in `folder`."""
    if config is not None:
        config = complete(config.to_dict())
        return Workload(config, workload.last_stage(config), None)
    config = complete(cli.load_config("pro_1b", "2").to_dict())
    work = Workload(config, "stage_2", synthetic.realistic())
    workload.set_mixture(work.settings, work.lengths, mixture=mixture, rows=rows or 8)
    rng = np.random.default_rng(0)
    (folder / "tokenizer.json").write_text(synthetic.text_tokenizer(rng))
    config["data"]["tokenizer"] = str(folder / "tokenizer.json")
    config["data"]["sources"] = {}
    for task, records in synthetic.records(rng, size=384, codes=576 if codes else 0).items():
        path = folder / f"{task}.array_record"
        write_array_record(path, records)
        config["data"]["sources"][task] = dict(kind="array_record", path=str(path))
    work.settings["sources"] = workload.synthetic_sources()
    return work


def _decoding_rates(sources, stage, *, cached, cores, repeats):
    """Images per second of decoding and resizing alone, on the same images and threads.

    Returns:
      {'ours': [to understand, to generate], 'bare': the same of PIL alone}, without the second
      where codes are cached;
      None without images.
    """
    encoded = _encoded_images(sources)
    if not encoded:
        return None
    model = stage.model
    fits = [(images.for_understanding, model["understanding"]["encoder"]["image_size"])]
    if not cached:
        fits.append((images.for_generation, model["generation"]["image_size"]))
    rates = {"ours": [], "bare": []}
    for fit, size in fits:
        readers = {
            "ours": lambda data, fit=fit, size=size: fit(images.decode(data), size=size),
            "bare": lambda data, size=size: np.asarray(
                Image.open(io.BytesIO(data))
                .convert("RGB")
                .resize((size, size), Image.Resampling.BICUBIC)
            ),
        }
        seconds = {name: [] for name in readers}
        for _ in range(repeats):
            for name, read in readers.items():  # they take turns
                start = time.perf_counter()
                with ThreadPoolExecutor(cores) as pool:
                    list(pool.map(read, encoded))
                seconds[name].append(time.perf_counter() - start)
        for name, times in seconds.items():
            rates[name].append(len(encoded) / float(np.median(times)))
    return rates


def _encoded_images(sources):
    """Encoded bytes of the first images of every source."""
    encoded = []
    for source in sources.values():
        for index in range(min(len(source), DECODED)):
            try:
                image = images.as_encoded_image(source[index].get("image"))
                images.decode(image)
                encoded.append(image.encoded)
            except images.BadRecord:
                continue
    return encoded


def _compare_decoding(rates, to_understand, to_generate, median):
    """Images decoded per second by us and by PIL alone, and the whole pipeline's share of PIL."""
    count = to_understand + to_generate
    per_second = {
        name: count / (to_understand / each[0] + to_generate / each[-1])
        for name, each in rates.items()
    }
    return {
        "decoded_per_second": per_second["ours"],
        "decoded_per_second_bare": per_second["bare"],
        "decoding_over_bare": per_second["ours"] / per_second["bare"],
        "pipeline_over_bare": count / median / per_second["bare"],
    }
