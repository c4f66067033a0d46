"""A stage's data: sources, examples, packed batches, held-out batches, and the check of its
caches.
"""

import os

from janus_jax import fingerprint
from janus_jax.batch import TASKS
from janus_jax.data import packing_stats, synthetic
from janus_jax.data import tokenizer as text_tokenizer
from janus_jax.data.bad_records import BadRecords
from janus_jax.data.examples import Augmentation, ExampleMaker, ImageTokens, Template
from janus_jax.data.pipeline import Pipeline
from janus_jax.data.shards import BatchShape, Stream
from janus_jax.data.sources import Source
from janus_jax.errors import UserError
from janus_jax.generation import generation_path
from janus_jax.recipe.stage import make_stage


def build_pipeline(stage, *, host, report=None):
    """The stage's data on this host.

    Args:
      stage: Stage.
      host: this host's index, and the number of hosts.
      report: a file for a list of unusable records.

    Returns:
      Pipeline and the TextTokenizer.

    Raises:
      UserError: for missing data, and for sizes that do not divide.
    """
    data, settings = stage.config["data"], stage.settings
    for task, slots in (("understanding", "und_slots"), ("generation", "gen_slots")):
        if not settings[slots] and any(phase.ratio[TASKS.index(task)] for phase in stage.phases):
            raise UserError(
                f"Stage {stage.name} mixes {task} images but "
                f"config.stages.{stage.name}.{slots} is 0."
            )
    make, tokenizer = build_example_maker(stage)
    sources = open_sources(stage.config, source_names(stage))
    pipeline = Pipeline(
        build_batch_shape(stage),
        streams={name: Stream(s, make=make, seed=stage.seed) for name, s in sources.items()},
        phases=stage.phases,
        pad_id=tokenizer.pad,
        bad_records=BadRecords(data["bad_record_limit"], sources=sources, report=report),
        unit=data["mixture_unit"],
        host=host,
        workers=os.cpu_count() if data["workers"] < 0 else data["workers"],
    )
    return pipeline, tokenizer


def build_batch_shape(stage):
    """The fixed shape of the stage's batches."""
    settings, model = stage.settings, stage.model
    return BatchShape(
        groups=stage.groups,
        und_size=model["understanding"]["encoder"]["image_size"],
        gen_size=model["generation"]["image_size"],
        window=stage.config["data"]["window"],
        shards=stage.config["data"]["shards"],
        **{k: settings[k] for k in ("rows", "length", "und_slots", "gen_slots")},
    )


def build_example_maker(stage):
    """What makes the stage's examples of records: ExampleMaker, and the TextTokenizer it uses."""
    data, vocab_size = stage.config["data"], stage.model["llm"]["vocab_size"]
    tokenizer = text_tokenizer.load(data["tokenizer"])
    if tokenizer.size > vocab_size:
        raise UserError(
            f"The text tokenizer has {tokenizer.size} tokens, "
            f"config.model.llm.vocab_size is {vocab_size}."
        )
    generator = generation_path(stage.model["generation"]["kind"])
    make = ExampleMaker(
        tokenizer,
        template=Template(
            stage.template, **{k: data[k] for k in ("roles", "system_prompt", "caption_prompt")}
        ),
        image_tokens=ImageTokens(
            stage.und_tokens,
            stage.gen_tokens,
            prefix_tokens=generator.prefix_tokens,
            attend_to_dropped_prompt=generator.attend_to_dropped_prompt,
        ),
        augmentation=Augmentation(
            **{k: data[k] for k in ("prompt_drop", "first_sentence", "crop")}
        ),
        max_length=stage.settings["length"],
        overlong=data["overlong"],
    )
    return make, tokenizer


def held_out_batches(stage, *, host):
    """The first batches of config.held_out.sources, and their mixture; no batches where the stage
    cannot use them.
    """
    held_out, settings = stage.config["held_out"], stage.settings
    mixture = [
        share if held_out["sources"].get(task) else 0
        for task, share in zip(TASKS, settings["mixture"], strict=True)
    ]
    if stage.trains_tokenizer or not any(mixture):
        return [], mixture
    settings = settings | {"sources": held_out["sources"], "mixture": mixture, "phases": ()}
    config = stage.config | {
        "stages": {stage.name: settings},
        "data": stage.config["data"] | {"prompt_drop": 0.0},
    }
    pipeline, _ = build_pipeline(
        make_stage(config, stage.name, mesh=stage.mesh, network=stage.network), host=host
    )
    try:
        return [next(pipeline).batch for _ in range(held_out["batches"])], mixture
    finally:
        pipeline.close()


def source_names(stage):
    """Names of the sources that a stage mixes in any of its phases."""
    weights = [
        (phase.sources.get(task) or {}, share)
        for phase in stage.phases
        for task, share in zip(TASKS, phase.ratio, strict=True)
    ]
    return sorted({name for sources, share in weights if share for name in sources})


def open_sources(config, names):
    """{name: Source}; a name that config.data.sources lacks is an error."""
    sources = config["data"]["sources"]
    unknown = [name for name in names if name not in sources]
    if unknown:
        raise UserError(
            f"A stage mixes source {unknown[0]!r}; config.data.sources has {sorted(sources)}."
        )
    return {name: Source(name, **sources[name]) for name in names}


def check_caches(stage, sources, params):
    """Compares the caches among a stage's sources with its tokenizer.

    Args:
      stage: Stage.
      sources: {name: Source}.
      params: {path: array} of the stage, which include the tokenizer.

    Raises:
      UserError: for a cache of another tokenizer, image size or crop, and for a cache in the
        tokenizer's own stage.
    """
    caches = {name: source for name, source in sources.items() if source.cache}
    if not caches:
        return
    tokenizer = {
        path: array for path, array in params.items() if path.startswith("generation/tokenizer/")
    }
    current = {
        "size": stage.model["generation"]["image_size"],
        "crop": stage.config["data"]["crop"],
        "fingerprint": fingerprint.fingerprint(tokenizer),
    }
    for name, source in caches.items():
        expected = current | source.image_options
        differing = [field for field in expected if source.cache.get(field) != expected[field]]
        if not stage.trains_tokenizer and not differing:
            continue
        why = "a tokenizer needs pixels"
        if differing:
            field = differing[0]
            why = f"its {field} is {source.cache.get(field)}, not {expected[field]}"
        raise UserError(
            f"Stage {stage.name} cannot use the cache {str(source.path)!r} of source {name!r}: "
            f"{why}. Cache it again with "
            f"`python -m janus_jax.prepare {source.cache['field']}`, or name the original data "
            f"({source.cache['path']!r})."
        )


def synthetic_lengths(stage):
    """Made-up lengths of examples with this model's images: {task: Lengths}.

    Raises:
      UserError: for rows that are too short for an image and a word.
    """
    tokens = max(stage.und_tokens, stage.gen_tokens)
    length = stage.settings["length"]
    if not stage.trains_tokenizer and length < tokens + 4:  # an image's two marks, BOS, and a word
        raise UserError(
            f"Rows of {length} tokens are too short for an image of {tokens} tokens and words."
        )
    return synthetic.realistic(
        und_tokens=stage.und_tokens, gen_tokens=stage.gen_tokens, length=length
    )


def expected_statistics(stage):
    """Statistics that a step of the stage should have, with rows as full as the packer gets them
    and made-up lengths.
    """
    settings, lengths = stage.settings, synthetic_lengths(stage)
    packed = packing_stats.simulate(
        lengths,
        settings["mixture"],
        **{k: settings[k] for k in ("rows", "length", "und_slots", "gen_slots")},
        window=stage.config["data"]["window"],
        groups=100,
    )
    tokens = settings["batch"] * settings["length"] * packed.token_fill
    return packing_stats.expected(
        lengths, settings["mixture"], tokens=tokens, und_tokens=stage.und_tokens
    )
