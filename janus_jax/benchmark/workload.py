"""What a benchmark works on: a stage's config, example lengths and made-up packed batches."""

import copy
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs import dims as dims_config
from janus_jax import cli
from janus_jax.batch import TASKS
from janus_jax.data import packing_stats, synthetic
from janus_jax.data.bad_records import BadRecords
from janus_jax.data.pipeline import Pipeline
from janus_jax.data.shards import Stream
from janus_jax.errors import UserError
from janus_jax.recipe.checks import check_stage, complete
from janus_jax.recipe.data import build_batch_shape, synthetic_lengths
from janus_jax.recipe.freezing import TOKENIZER, stage_number
from janus_jax.recipe.stage import Stage, make_stage

IMAGE_ID = 3  # token id of an image's positions; no other token of made-up examples is below 16
PAD_ID = 2


class Workload(NamedTuple):
    """A stage's config, and what its examples look like.

    Attributes:
      config: resolved config, a plain dict.
      name: of the stage.
      lengths: {task: Lengths} of made-up examples, or None where the config's own data are used.
      dims: content of the dimensions file, or None.
    """

    config: dict
    name: str
    lengths: dict | None
    dims: dict | None = None

    @property
    def settings(self):
        """The stage's part of the config, which the benchmark's flags change."""
        return self.config["stages"][self.name]

    def stage(self, *, mesh=None, network=None) -> Stage:
        """The typed stage on a mesh; `network` is its ModelSpec where that is already built."""
        return make_stage(self.config, self.name, mesh=mesh, network=network)

    def number(self, part, name):
        """A number of the dimensions file that not every benchmark needs.

        Raises:
          UserError: where it is missing or not above 0.
        """
        value = self.dims.get(part, {}).get(name)
        if not value or (isinstance(value, int) and value < 1):
            raise UserError(
                f"The dimensions file does not give {part}.{name}, which this benchmark needs, "
                "above 0."
            )
        return value


def from_dims(path):
    """The Workload of a dimensions file."""
    try:
        dims = json.loads(Path(path).read_text())
        config = dims_config.get_config(path).to_dict()
        config["stages"]["stage_2"]["sources"] = synthetic_sources()
        return Workload(complete(config), "stage_2", synthetic.table(dims), dims)
    except KeyError as error:
        raise UserError(f"--dims={path} is not a dimensions file: it has no {error}.") from None
    except (OSError, ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"--dims={path} is not a dimensions file: {error}.") from None


def from_config(config):
    """The Workload of a config's last stage with made-up examples; None: pro_1b's stage 2."""
    config = complete(copy.deepcopy((config or cli.load_config("pro_1b", "2")).to_dict()))
    name = last_stage(config)
    check_stage(config, name)
    config["stages"][name] |= {"sources": synthetic_sources(), "phases": ()}
    return Workload(config, name, synthetic_lengths(make_stage(config, name)))


def synthetic_sources():
    """Sources of a stage that mixes one made-up source per task."""
    return {task: {task: 1} for task in TASKS}


def last_stage(config):
    """The last stage of a config, which trains what samples images and answers."""
    if not (names := config["stages"].keys() - {TOKENIZER}):
        raise UserError(
            "The config's stage trains the image tokenizer only; name another one, "
            "--config=configs/tiny.py:2."
        )
    return max(names, key=stage_number)


def set_mixture(settings, lengths, *, mixture, rows):
    """Sets a mixture like '2:3:5' (None keeps the stage's), rows per group and image slots."""
    if mixture:
        shares = (
            [float(share) for share in mixture.split(":")]
            if re.fullmatch(r"(\d+(\.\d+)?(:|$)){3}", mixture)
            else []
        )
        if not any(shares):
            raise UserError(f"--mixture={mixture} is not a ratio like 2:3:5.")
        settings["mixture"] = tuple(shares)
    settings["rows"] = rows
    slots = packing_stats.budgets(
        lengths, settings["mixture"], rows=rows, length=settings["length"]
    )
    settings["und_slots"], settings["gen_slots"], _ = slots


def packed_batches(stage, lengths, *, workers):
    """An endless iterator of Packed: made-up examples whose images to generate are codes.

    Args:
      stage: Stage, whose shape the batches have.
      lengths: {task: Lengths}.
      workers: threads.
    """
    sources = {task: synthetic.TableSource(task, lengths[task]) for task in TASKS}
    make = table_maker(stage)
    return Pipeline(
        build_batch_shape(stage)._replace(shards=1),
        streams={task: Stream(source, make=make, seed=0) for task, source in sources.items()},
        phases=stage.phases,
        pad_id=PAD_ID,
        bad_records=BadRecords(0.01, sources=sources),
        workers=workers,
    )


def table_maker(stage):
    """What makes examples out of lengths."""
    generation = stage.model["generation"]
    return synthetic.TableMaker(
        tokens=(stage.und_tokens, stage.gen_tokens),
        vocab_size=stage.model["llm"]["vocab_size"],
        image=IMAGE_ID,
        codebook_size=generation["tokenizer"].get("codebook_size", 2),
        encoded=synthetic.photo(np.random.default_rng(0), size=generation["image_size"]),
    )


def fill_figures(stage, lengths):
    """Fill of a thousand groups of these lengths, bound of any packer, useful share of FLOPs.

    The FLOPs that are executed are those of the same network on every position and every image
    slot.
    """
    settings = stage.settings
    sizes = {k: settings[k] for k in ("rows", "length", "und_slots", "gen_slots")}
    packed = packing_stats.simulate(
        lengths, settings["mixture"], **sizes, window=stage.config["data"]["window"]
    )
    bound = packing_stats.bound(lengths, settings["mixture"], length=settings["length"])
    positions = packed.groups * settings["rows"] * settings["length"]
    tokens = packed.token_fill * positions
    useful = packing_stats.expected(
        lengths, settings["mixture"], tokens=tokens, und_tokens=stage.und_tokens
    )
    useful["cached"] = True
    executed = useful | {
        "tokens": positions,
        "und_pictures": packed.groups * settings["und_slots"],
        "gen_pictures": packed.groups * settings["gen_slots"],
    }
    flops = lambda stats: sum(stage.flops(stats).values())
    return {
        "groups": packed.groups,
        "token_fill": packed.token_fill,
        "token_bound": bound,
        "share_of_bound": packed.token_fill / bound,
        "slot_fill": packed.slot_fill,
        "useful_share_of_flops": flops(useful) / flops(executed),
    }
