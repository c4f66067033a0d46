"""How fast a train step, a drawing and an answer are on the devices that are there, with made-up data.

Where transformers and PyTorch are asked too, both run by turns, so that what slows the machine down slows both.
"""

import time

import jax
import numpy as np
import rich.console
import rich.progress

from janus_jax import distributed, hardware, hlo, sharding
from janus_jax.batch import TASKS
from janus_jax.benchmark import torch_baseline
from janus_jax.data import synthetic
from janus_jax.data.images import decode, for_understanding
from janus_jax.data.pipeline import COUNTS, Pipeline, statistics
from janus_jax.data.shards import Layout
from janus_jax.inference import decode as decoding
from janus_jax.recipe import assembly, states

BATCHES = 2  # packed ones of a timed run
IMAGE = 3  # id of a picture's positions, and below 16 nothing else is drawn


def pipeline(config, stage, lengths, *, tokens, workers, groups):
    """Packed batches of made-up examples of these lengths, pictures to draw as codes.

    Args:
      config, stage: whose layout it has.
      lengths: {task: Lengths}.
      tokens: of a picture to understand, and of one to draw.
      workers: threads.
      groups: in a batch.
    """
    s, model = config["stages"][stage], config["model"]
    size = model["generation"]["image_size"]
    layout = Layout(
        groups=groups, und_size=model["understanding"]["encoder"]["image_size"], gen_size=size,
        window=config["data"]["window"], shards=1, **{k: s[k] for k in ("rows", "length", "und_slots", "gen_slots")},
    )  # fmt: skip
    sources = {task: synthetic.TableSource(task, lengths[task]) for task in TASKS}
    return Pipeline(
        layout=layout, sources=sources, make=_maker(config, tokens), phases=assembly.phases_of(s), seed=0, pad_id=2,
        workers=workers,
    )  # fmt: skip


def _maker(config, tokens):
    model = config["model"]
    return synthetic.TableMaker(
        tokens=tokens, vocab_size=model["llm"]["vocab_size"], image=IMAGE,
        codebook_size=model["generation"]["tokenizer"].get("codebook_size", 2),
        encoded=synthetic.photo(np.random.default_rng(0), size=model["generation"]["image_size"]),
    )  # fmt: skip


def train(config, stage, lengths, *, tokens, codes, repeats, against, order=None, rows=None):
    """Times the train step that `train` runs.

    Args:
      config: resolved config, a plain dict; its batch, rows and mesh are taken as they are.
      stage: a key of config['stages'].
      lengths, tokens: as in `pipeline`.
      codes: whether pictures to draw come as codes, not as pixels.
      repeats: timed runs.
      against: names of `peer.WAYS` to run beside it.
      order: tasks of the examples that the peer gets, by their names.
      rows: of the peer's batches.

    Returns:
      dict of figures.
    """
    s, mesh = config["stages"][stage], sharding.make_mesh(**config["mesh"])
    torch_model = torch_baseline.Peer(config, stage) if against else None
    network = assembly.build_network(config, stage)
    tx, rate = assembly.build_optimizer(config, stage, network)
    groups = assembly.check_division(s, mesh)
    source = pipeline(config, stage, lengths, tokens=tokens, workers=0, groups=groups)
    packed = [next(source) for _ in range(BATCHES)]
    with jax.set_mesh(mesh):
        state = _fresh_state(config, stage, network, tx, mesh)
        trainable = tuple(state.trainable)
        batches = [distributed.put_batch(mesh, _pictures(p.batch, config, codes)) for p in packed]
        step = states.jit_step(config, stage, network, tx, rate, state=state, mesh=mesh)
        start = time.perf_counter()
        step = step.lower(state, batches[0]).compile()
        compiled_in, memory = time.perf_counter() - start, hlo.memory(step)
        held = {"state": state}  # each step gives the state before it up

        def ours():
            for batch in batches:
                held["state"], metrics = step(held["state"], batch)
            if not np.isfinite(jax.block_until_ready(metrics)["loss"].item()):
                raise FloatingPointError("the loss of the benchmark is not finite")

        ways = {"ours": ours}
        counts = {name: sum(np.array(p.stats[name]) for p in packed) for name in COUNTS}
        real = {"ours": int(counts["tokens"])}
        padded = {"ours": int(counts["positions"])}
        if against:
            examples = _examples(config, lengths, order, tokens)
            for way in against:
                parts = torch_model.batches(examples, rows=rows, length=torch_baseline.WAYS[way] and s["length"])
                ways[way] = lambda parts=parts: torch_model.train(parts)
                real[way], padded[way] = (sum(part[name] for part in parts) for name in ("real", "padded"))
        rate_of_product = hardware.peak_flops()
        seconds = by_turns(ways, repeats=repeats)
        rate_of_product = max(rate_of_product, hardware.peak_flops())
    median = float(np.median(seconds["ours"]))
    done = statistics(counts) | {"cached": codes}
    every = done | {"tokens": done["positions"], "und_pictures": BATCHES * groups * s["und_slots"]}
    every["gen_pictures"] = BATCHES * groups * s["gen_slots"]
    flops = lambda stats: sum(assembly.step_flops(config, stats, trainable=trainable).values())
    figures = {"name": "train", "stage": stage} | of_times(seconds["ours"], per=BATCHES)
    figures |= {
        "tokens_real": real["ours"] / BATCHES, "tokens_padded": padded["ours"] / BATCHES,
        "tokens_per_second": real["ours"] / median, "tokens_per_second_padded": padded["ours"] / median,
        "images_per_second": (done["und_pictures"] + done["gen_pictures"]) / median,
        "token_fill": done["token_fill"], "slot_fill": done["slot_fill"],
        "mfu": flops(done) / median / rate_of_product, "mfu_raw": flops(every) / median / rate_of_product,
        "peak_flops": rate_of_product, "bytes_per_device": sum(memory.values()), "peak_bytes": _peak_bytes(),
        "compile_seconds": compiled_in, "device": jax.devices()[0].device_kind, "devices": jax.device_count(),
    }  # fmt: skip
    for way in against:
        rates = real[way] / np.array(seconds[way])
        figures |= {
            f"{way}/tokens_per_second": float(np.median(rates)),
            f"{way}/min": rates.min(),
            f"{way}/max": rates.max(),
        }
        figures[f"over_{way}"] = figures["tokens_per_second"] / figures[f"{way}/tokens_per_second"]
    return figures


def _fresh_state(config, stage, network, tx, mesh):
    """A stage's first state, every parameter fresh."""
    params = states.fresh_params(network, states.abstract_params(config, stage, network, mesh), jax.random.key(0))
    return states.first_state(config, stage, params, tx, mesh)


def _pictures(batch, config, codes):
    """A packed batch with its codes, or with pixels in their place."""
    if codes:
        return batch
    rng, size = np.random.default_rng(0), config["model"]["generation"]["image_size"]
    pixels = rng.integers(0, 256, (*batch.gen_start.shape, size, size, 3), np.uint8)
    return batch._replace(gen_codes=None, gen_images=pixels)


def _examples(config, lengths, order, tokens):
    """[(Example, pixels or None)] of these tasks, their lengths taken from the tables in turn."""
    make, taken, found = _maker(config, tokens), dict.fromkeys(TASKS, 0), []
    size, rng = config["model"]["understanding"]["encoder"]["image_size"], np.random.default_rng(0)
    for task in order:
        table = lengths[task].tokens
        example = make({"tokens": int(table[taken[task] % len(table)])}, task=task, rng=rng)
        taken[task] += 1
        pixels = [for_understanding(decode(picture), size=size) for picture in example.und_images]
        found.append((example, pixels[0] if pixels else None))
    return found


def by_turns(ways, *, repeats):
    """Runs functions one after the other, again and again: {name: function} -> {name: seconds of each run}.

    The first round is the warm-up.
    """
    seconds = {name: [] for name in ways}
    rounds = range(repeats + 1)
    for number in rich.progress.track(rounds, description="runs", console=rich.console.Console(stderr=True)):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def of_times(seconds, *, per=1):
    """Median, least and most of timed runs, of `per` steps each."""
    each = np.array(seconds) / per
    return {"seconds_median": float(np.median(each)), "min": each.min(), "max": each.max(), "n": len(each)}


def _peak_bytes():
    """The most that was in use on a device, where it says so."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def draw(config, stage, *, prompt, batch, repeats, against):
    """Times the drawing of `batch` pictures from prompts of so many tokens, guided, with their decoding to pixels."""
    torch_model = torch_baseline.Peer(config, stage) if against else None
    network, params, mesh = _frozen(config, stage)
    ids, real, keys = _prompts(config, prompt, batch)
    with jax.set_mesh(mesh):
        guidance = network.merge(network.abstract).path.Guidance()
        ids, real, keys = distributed.shard_leading_axis((ids, real, keys[:, None]))
        start = time.perf_counter()
        program = decoding.draw_batch.lower(params, ids, real, keys, network=network, pad_id=2, guidance=guidance).compile()
        figures = {"compile_seconds": time.perf_counter() - start, "bytes_per_device": sum(hlo.memory(program).values())}
        ways = {"ours": lambda: jax.block_until_ready(program(params, ids, real, keys, pad_id=2))}
        if against:
            ways["transformers"] = lambda: torch_model.draw(np.asarray(ids))
        seconds = by_turns(ways, repeats=repeats)
    tokens = batch * network.merge(network.abstract).path.num_tokens
    return _rates("draw", seconds, figures, tokens_real=tokens, tokens_padded=tokens, images=batch)


def ask(config, stage, *, question, answer, batch, repeats, against):
    """Times greedy answers of so many tokens to `batch` questions of so many, each about a picture of its own."""
    torch_model = torch_baseline.Peer(config, stage) if against else None
    network, params, mesh = _frozen(config, stage)
    model, rng = config["model"], np.random.default_rng(0)
    encoder = model["understanding"]["encoder"]
    seen = (encoder["image_size"] // encoder["patch_size"]) ** 2
    ids, real, keys = _prompts(config, question + seen, batch)
    ids[:, 2 : 2 + seen] = IMAGE
    pictures = rng.integers(0, 256, (batch, 1, encoder["image_size"], encoder["image_size"], 3), np.uint8)
    with jax.set_mesh(mesh):
        given = distributed.shard_leading_axis((ids, real, pictures, np.full((batch, 1), 2, np.int32), keys))
        settings = dict(eos_id=-1, temperature=0.0)  # no answer ends early
        start = time.perf_counter()
        program = decoding.answer_batch.lower(params, *given, network=network, max_tokens=answer, **settings).compile()
        figures = {"compile_seconds": time.perf_counter() - start, "bytes_per_device": sum(hlo.memory(program).values())}
        ways = {"ours": lambda: jax.block_until_ready(program(params, *given, **settings))}
        if against:
            ways["transformers"] = lambda: torch_model.ask(ids, pictures[:, 0], answer=answer)
        seconds = by_turns(ways, repeats=repeats)
    return _rates("ask", seconds, figures, tokens_real=batch * answer, tokens_padded=batch * answer, images=batch)


def _frozen(config, stage):
    """A network, fresh parameters as they are held for drawing, and the mesh of all devices."""
    network = assembly.build_network(config, stage)
    mesh = assembly.inference_mesh(network, config)
    places = sharding.param_shardings(mesh, network.abstract, network.axes)
    dtypes = assembly.held_dtypes(network, config, frozen=network.abstract)
    wanted = {p: jax.ShapeDtypeStruct(a.shape, dtypes[p], sharding=places[p]) for p, a in network.abstract.items()}
    return network, states.fresh_params(network, wanted, jax.random.key(0)), mesh


def _prompts(config, length, batch):
    """Made-up ids int32[B, P], all of them real, and a key a row."""
    ids = np.random.default_rng(0).integers(16, config["model"]["llm"]["vocab_size"], (batch, length)).astype(np.int32)
    return ids, np.ones(ids.shape, bool), jax.vmap(jax.random.key)(np.arange(batch, dtype=np.uint32))


def _rates(name, seconds, figures, *, tokens_real, tokens_padded, images):
    """The figures of a drawing or an answer; MFU and fill are a training step's alone."""
    times = of_times(seconds["ours"])
    median = times["seconds_median"]
    figures = {"name": name} | times | {
        "tokens_real": tokens_real, "tokens_padded": tokens_padded, "tokens_per_second": tokens_real / median,
        "images_per_second": images / median, "token_fill": None, "slot_fill": None, "mfu": None, **figures,
        "peak_bytes": _peak_bytes(),
        "device": jax.devices()[0].device_kind, "devices": jax.device_count(),
    }  # fmt: skip
    for way in seconds.keys() - {"ours"}:
        other = of_times(seconds[way])
        figures |= {f"{way}/{key}": other[key] for key in ("seconds_median", "min", "max")}
        figures[f"over_{way}"] = other["seconds_median"] / median
    return figures
