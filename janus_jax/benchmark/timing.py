"""Times a train step, image generation and answers on the attached devices, with made-up data.

Where a baseline in PyTorch runs too, both take turns, so that whatever slows the machine down slows
both.
"""

import time

import jax
import numpy as np
import rich.console
import rich.progress

from janus_jax import distributed, hardware, hlo, train_step
from janus_jax.batch import TASKS
from janus_jax.benchmark import torch_baseline
from janus_jax.benchmark.workload import IMAGE_ID, PAD_ID, packed_batches, table_maker
from janus_jax.data.images import decode, for_understanding
from janus_jax.data.pipeline import COUNTS, statistics
from janus_jax.inference import decode as decoding
from janus_jax.recipe.load import abstract_for_inference

BATCHES = 2  # packed batches of a timed run


def train(stage, lengths, *, codes, repeats, baseline_tasks=None, baseline_rows=None):
    """Times the train step that `train` runs.

    Args:
      stage: Stage on a mesh of attached devices.
      lengths: {task: Lengths}.
      codes: whether images to generate come as codes, not as pixels.
      repeats: number of timed runs.
      baseline_tasks: tasks of the examples of the PyTorch baseline, which runs if they are given.
      baseline_rows: rows of the baseline's batches.

    Returns:
      dict of figures.
    """
    baseline = torch_baseline.TorchJanus(stage) if baseline_tasks else None
    source = packed_batches(stage, lengths, workers=0)
    packed = [next(source) for _ in range(BATCHES)]
    counts = {name: sum(np.array(p.stats[name]) for p in packed) for name in COUNTS}
    with jax.set_mesh(stage.mesh):
        run, compiled = _train_run(stage, [p.batch for p in packed], codes=codes)
        runs = {"ours": run}
        real, padded = {"ours": int(counts["tokens"])}, {"ours": int(counts["positions"])}
        if baseline:
            examples = _examples(stage, lengths, baseline_tasks)
            for padding in torch_baseline.PADDING:
                length = stage.settings["length"] if padding == "full" else None
                batches = baseline.batches(examples, rows=baseline_rows, length=length)
                runs[padding] = lambda batches=batches: baseline.train(batches)
                real[padding], padded[padding] = (
                    sum(b[name] for b in batches) for name in ("real", "padded")
                )
        peak_flops = hardware.peak_flops()
        seconds = take_turns(runs, repeats=repeats)
        peak_flops = max(peak_flops, hardware.peak_flops())
    figures = {"name": "train", "stage": stage.name} | summary(seconds["ours"], steps=BATCHES)
    figures |= _rates_of_training(
        stage, counts, seconds["ours"], codes=codes, peak_flops=peak_flops
    )
    figures |= compiled | {
        "peak_bytes": _peak_bytes(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }
    for padding in runs.keys() - {"ours"}:
        rates = real[padding] / np.array(seconds[padding])
        median = float(np.median(rates))
        figures |= {
            f"{padding}/tokens_per_second": median,
            f"{padding}/min": rates.min(),
            f"{padding}/max": rates.max(),
        }
        figures[f"over_{padding}"] = figures["tokens_per_second"] / median
    return figures


def _train_run(stage, batches, *, codes):
    """A function that trains on the batches once, and what compiling its step took and needs."""
    params = train_step.init_params(stage.network, stage.abstract_params, jax.random.key(0))
    state = train_step.first_state(stage, params)
    batches = [
        distributed.put_batch(stage.mesh, batch if codes else _with_pixels(batch, stage))
        for batch in batches
    ]
    start = time.perf_counter()
    step = train_step.jit(stage, state).lower(state, batches[0]).compile()
    compiled = {
        "compile_seconds": time.perf_counter() - start,
        "bytes_per_device": sum(hlo.memory(step).values()),
    }
    latest = {"state": state}  # each step donates the state before it

    def run():
        for batch in batches:
            latest["state"], metrics = step(latest["state"], batch)
        if not np.isfinite(jax.block_until_ready(metrics)["loss"].item()):
            raise FloatingPointError("the loss of the benchmark is not finite")

    return run, compiled


def _rates_of_training(stage, counts, seconds, *, codes, peak_flops):
    """Tokens, images and useful FLOPs per second of timed runs over BATCHES batches."""
    median = float(np.median(seconds))
    useful = statistics(counts) | {"cached": codes}
    slots = BATCHES * stage.groups
    executed = useful | {
        "tokens": useful["positions"],
        "und_pictures": slots * stage.settings["und_slots"],
        "gen_pictures": slots * stage.settings["gen_slots"],
    }
    mfu = lambda stats: sum(stage.flops(stats).values()) / median / peak_flops
    tokens, positions = int(counts["tokens"]), int(counts["positions"])
    return {
        "tokens_real": tokens / BATCHES,
        "tokens_padded": positions / BATCHES,
        "tokens_per_second": tokens / median,
        "tokens_per_second_padded": positions / median,
        "images_per_second": (useful["und_pictures"] + useful["gen_pictures"]) / median,
        "token_fill": useful["token_fill"],
        "slot_fill": useful["slot_fill"],
        "mfu": mfu(useful),
        "mfu_raw": mfu(executed),
        "peak_flops": peak_flops,
    }


def _with_pixels(batch, stage):
    """A packed batch with pixels in place of its codes."""
    size = stage.model["generation"]["image_size"]
    pixels = np.random.default_rng(0).integers(
        0, 256, (*batch.gen_start.shape, size, size, 3), np.uint8
    )
    return batch._replace(gen_codes=None, gen_images=pixels)


def _examples(stage, lengths, tasks):
    """[(Example, pixels or None)] of these tasks, with the lengths of the tables in turn."""
    make, taken, examples = table_maker(stage), dict.fromkeys(TASKS, 0), []
    size, rng = stage.model["understanding"]["encoder"]["image_size"], np.random.default_rng(0)
    for task in tasks:
        table = lengths[task].tokens
        example = make({"tokens": int(table[taken[task] % len(table)])}, task=task, rng=rng)
        taken[task] += 1
        pixels = [for_understanding(decode(image), size=size) for image in example.und_images]
        examples.append((example, pixels[0] if pixels else None))
    return examples


def take_turns(runs, *, repeats):
    """Calls functions in turn, repeatedly: {name: function} -> {name: seconds of each call}.

    The first round is a warm-up and does not count.
    """
    seconds = {name: [] for name in runs}
    console = rich.console.Console(stderr=True)
    for number in rich.progress.track(range(repeats + 1), description="runs", console=console):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds, *, steps=1):
    """Median, minimum and maximum of timed runs of `steps` steps each."""
    per_step = np.array(seconds) / steps
    return {
        "seconds_median": float(np.median(per_step)),
        "min": per_step.min(),
        "max": per_step.max(),
        "n": len(per_step),
    }


def _peak_bytes():
    """The largest amount of memory in use on a device, where the device reports it."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def draw(stage, *, prompt, batch, repeats, baseline):
    """Times guided generation of `batch` images, decoding included, from `prompt` tokens each."""
    torch_model = torch_baseline.TorchJanus(stage) if baseline else None
    params, mesh = _inference_params(stage)
    ids, real, keys = _prompts(stage, prompt, batch)
    with jax.set_mesh(mesh):
        guidance = stage.network.module.generator.Guidance()
        ids, real, keys = distributed.shard_leading_axis((ids, real, keys[:, None]))
        start = time.perf_counter()
        settings = dict(network=stage.network, pad_id=PAD_ID, guidance=guidance)
        program = decoding.draw_batch.lower(params, ids, real, keys, **settings).compile()
        compiled = _compiled(program, start)
        runs = {
            "ours": lambda: jax.block_until_ready(program(params, ids, real, keys, pad_id=PAD_ID))
        }
        if baseline:
            runs["transformers"] = lambda: torch_model.draw(np.asarray(ids))
        seconds = take_turns(runs, repeats=repeats)
    return _rates_of_sampling(
        "draw", seconds, compiled, tokens=batch * stage.gen_tokens, images=batch
    )


def ask(stage, *, question, answer, batch, repeats, baseline):
    """Times greedy answers of `answer` tokens to `batch` image questions of `question` tokens."""
    torch_model = torch_baseline.TorchJanus(stage) if baseline else None
    params, mesh = _inference_params(stage)
    features = stage.und_tokens
    ids, real, keys = _prompts(stage, question + features, batch)
    ids[:, 2 : 2 + features] = IMAGE_ID
    size = stage.model["understanding"]["encoder"]["image_size"]
    images = np.random.default_rng(0).integers(0, 256, (batch, 1, size, size, 3), np.uint8)
    starts = np.full((batch, 1), 2, np.int32)
    with jax.set_mesh(mesh):
        questions = decoding.Questions(ids, real, images, starts)
        questions, keys = distributed.shard_leading_axis((questions, keys))
        settings = dict(eos_id=-1, temperature=0.0)  # no answer ends early
        start = time.perf_counter()
        program = decoding.answer_batch.lower(
            params, questions, keys, network=stage.network, max_tokens=answer, **settings
        ).compile()
        compiled = _compiled(program, start)
        runs = {"ours": lambda: jax.block_until_ready(program(params, questions, keys, **settings))}
        if baseline:
            runs["transformers"] = lambda: torch_model.ask(ids, images[:, 0], answer=answer)
        seconds = take_turns(runs, repeats=repeats)
    return _rates_of_sampling("ask", seconds, compiled, tokens=batch * answer, images=batch)


def _compiled(program, start):
    """What compiling a program took since `start`, and the memory that it needs."""
    seconds = time.perf_counter() - start
    return {"compile_seconds": seconds, "bytes_per_device": sum(hlo.memory(program).values())}


def _inference_params(stage):
    """Fresh parameters in the dtypes and shardings that sampling uses, and their mesh."""
    abstract = abstract_for_inference(stage.network, stage.dtype)
    mesh = next(iter(abstract.values())).sharding.mesh
    return train_step.init_params(stage.network, abstract, jax.random.key(0)), mesh


def _prompts(stage, length, batch):
    """Made-up ids int32[B, P], all of them real, and one key per row."""
    vocab_size = stage.model["llm"]["vocab_size"]
    ids = np.random.default_rng(0).integers(16, vocab_size, (batch, length)).astype(np.int32)
    keys = jax.vmap(jax.random.key)(np.arange(batch, dtype=np.uint32))
    return ids, np.ones(ids.shape, bool), keys


def _rates_of_sampling(name, seconds, compiled, *, tokens, images):
    """The figures of `draw` or `ask`; fill and MFU are defined for a training step only."""
    times = summary(seconds["ours"])
    median = times["seconds_median"]
    figures = (
        {"name": name}
        | times
        | {
            "tokens_real": tokens,
            "tokens_padded": tokens,
            "tokens_per_second": tokens / median,
            "images_per_second": images / median,
            "token_fill": None,
            "slot_fill": None,
            "mfu": None,
            **compiled,
            "peak_bytes": _peak_bytes(),
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
        }
    )
    for other in seconds.keys() - {"ours"}:
        theirs = summary(seconds[other])
        figures |= {f"{other}/{key}": theirs[key] for key in ("seconds_median", "min", "max")}
        figures[f"over_{other}"] = theirs["seconds_median"] / median
    return figures
