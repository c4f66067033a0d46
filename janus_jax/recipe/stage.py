"""A stage of a recipe as one typed record, made once from the resolved config."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax import flops, sharding
from janus_jax.data.mixture import Phase
from janus_jax.errors import UserError
from janus_jax.generation import generation_path
from janus_jax.models.functional import ModelSpec
from janus_jax.objectives import OBJECTIVES
from janus_jax.objectives.base import Objective
from janus_jax.recipe import checks, memory, optimizer
from janus_jax.recipe.freezing import default_frozen, matching, split, stage_number


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One training stage: what it trains, on which mesh, for how long, and how much memory that
    takes.

    Attributes:
      name: 'tokenizer' or 'stage_N'.
      config: the resolved config, a plain dict, which a checkpoint carries along.
      settings: the part of it at config['stages'][name].
      objective: what the stage minimises.
      network: ModelSpec that the objective trains.
      mesh: where it trains, a Mesh, or an AbstractMesh to plan on.
      frozen: path patterns of the parameters that do not train.
      dtype: what the LLM and the understanding encoder compute in.
      phases: tuple of Phase: mixture and sources, and the step until which they hold.
      und_tokens: tokens of an image to understand; 0 where the network has no understanding
        encoder.
      gen_tokens: tokens of an image to generate.
    """

    name: str
    config: dict
    settings: dict
    objective: Objective
    network: ModelSpec
    mesh: Any
    frozen: tuple[str, ...]
    dtype: np.dtype
    phases: tuple[Phase, ...]
    und_tokens: int
    gen_tokens: int

    @property
    def model(self) -> dict:
        """The model's sizes, `config.model`."""
        return self.config["model"]

    @property
    def seed(self) -> int:
        """Stages draw differently from one seed."""
        number = stage_number(self.name)
        return self.config["seed"] * 4 + min(number, 3) + 2**20 * max(number - 3, 0)

    @property
    def last_step(self) -> int:
        """Steps of the stage; `stop_at` ends it before its schedule does."""
        return self.settings["stop_at"] or self.settings["steps"]

    @property
    def ema(self) -> float:
        """Decay of the moving average of what trains; 0 keeps none."""
        return self.config["ema"]

    @property
    def groups(self) -> int:
        """S, pack groups of the global batch.

        Raises:
          UserError: for sizes that do not divide over the mesh and the microbatches.
        """
        return checks.count_groups(self.settings, self.mesh)

    @property
    def template(self) -> str:
        """The text layout, 'plain' or 'chat'."""
        return self.settings["template"]

    @property
    def mask(self) -> str:
        """The generation path's attention mask, 'causal' or 'picture_bidirectional'."""
        return generation_path(self.model["generation"]["kind"]).mask

    @property
    def trains_tokenizer(self) -> bool:
        """Whether the stage trains the generation tokenizer alone."""
        return self.objective.trains_tokenizer

    @functools.cached_property
    def dtypes(self) -> dict:
        """{path: dtype} that parameters are held in."""
        _, frozen = split(self.network.abstract, self.frozen)
        return held_dtypes(self.network, frozen, self.dtype)

    @functools.cached_property
    def abstract_params(self) -> dict:
        """{path: ShapeDtypeStruct with its sharding} of all parameters."""
        shardings = sharding.param_shardings(self.mesh, self.network.abstract, self.network.axes)
        return {
            path: jax.ShapeDtypeStruct(leaf.shape, self.dtypes[path], sharding=shardings[path])
            for path, leaf in self.network.abstract.items()
        }

    @functools.cached_property
    def trainable(self) -> dict:
        """`abstract_params` of what trains."""
        return split(self.abstract_params, self.frozen)[0]

    def trains(self, prefix: str) -> bool:
        """Whether any parameter whose path starts with `prefix` trains."""
        return any(path.startswith(prefix) for path in self.trainable)

    @functools.cached_property
    def group_of(self) -> dict:
        """{path: group of the objective} of what trains; the first group whose patterns match."""
        groups = {}
        for group, patterns in reversed(self.objective.groups.items()):
            groups |= dict.fromkeys(matching(patterns, self.trainable), group)
        if missing := sorted(self.trainable.keys() - groups.keys()):
            raise UserError(
                f"{missing[0]} trains in stage {self.name} and is in no group of its objective: "
                f"{list(self.objective.groups)}."
            )
        return groups

    @functools.cached_property
    def learning_rate(self):
        """Step -> the default learning rate, for the log."""
        _, default = optimizer.rates_by_path(self.settings["lr"], self.trainable)
        return self._schedule(default)

    @functools.cached_property
    def tx(self):
        """The optimizer of everything that trains, one per group of the objective."""
        rates, _ = optimizer.rates_by_path(self.settings["lr"], self.trainable)
        scale = optimizer.scale_by_rates(rates, self._schedule)
        weight_decay = self.settings["weight_decay"]
        make = functools.partial(optimizer.make, self.network, scale, weight_decay=weight_decay)
        settings = self.objective.optimizer_settings(self.config["optimizer"])
        return optimizer.by_group(
            {group: make(**own) for group, own in settings.items()}, self.group_of
        )

    def _schedule(self, lr):
        s = self.settings
        return optimizer.schedule(lr, steps=s["steps"], warmup=s["warmup"], decay=s["decay"])

    def flops(self, stats: dict) -> dict:
        """Useful FLOPs of a step, {part: FLOPs}; `stats` are a batch's own (`data.pipeline`) or
        expected ones.
        """
        llm, understanding, generation = (
            self.model[part] for part in ("llm", "understanding", "generation")
        )
        path_class = generation_path(generation["kind"])
        if self.trains_tokenizer:
            side = generation["tokenizer_training"]["crop"] or generation["image_size"]
            passes = sum(path_class.Tokenizer.flops(size=side, **generation["tokenizer"]))
            return {"tokenizer": flops.TRAINED * stats["gen_pictures"] * passes}
        image = path_class.flops(
            generation,
            embed_dim=llm["embed_dim"],
            encoder=flops.encoder(understanding["encoder"], tokens=self.und_tokens),
        )
        return flops.step(
            stats,
            llm=llm,
            understanding=understanding,
            und_tokens=self.und_tokens,
            image=image,
            trains=self.trains,
        )

    @functools.cached_property
    def memory(self) -> dict:
        """{kind: bytes on a device} of a step; all but the activations are exact."""
        return memory.bytes_by_kind(self)

    @property
    def bytes_per_device(self) -> int:
        """Memory that a step needs on each device: what `train` checks before a run and what `plan`
        reports.
        """
        return sum(self.memory.values())


def make_stage(config: dict, name: str, *, mesh=None, network: ModelSpec | None = None) -> Stage:
    """Makes the typed record of a stage.

    Args:
      config: resolved config, a plain dict.
      name: a key of config['stages'].
      mesh: where it trains; by default one abstract device, for whoever asks about sizes only.
      network: the stage's ModelSpec where it is already built, which takes a second for large
        models.

    Raises:
      UserError: for a config that no run can have, with the field.
    """
    config = checks.complete(config)
    checks.check_stage(config, name)
    settings, model = config["stages"][name], config["model"]
    dtype = compute_dtype(config["dtype"])
    objective_class = OBJECTIVES[settings["objective"]]
    network = network or objective_class.build_network(model, dtype=dtype)
    frozen = settings["frozen"]
    generation = model["generation"]
    return Stage(
        name=name,
        config=config,
        settings=settings,
        objective=objective_class(network),
        network=network,
        mesh=sharding.abstract_mesh(1, 1, 1) if mesh is None else mesh,
        frozen=default_frozen(name) if frozen is None else tuple(frozen),
        dtype=dtype,
        phases=phases_of(settings),
        und_tokens=count_und_tokens(network, model),
        gen_tokens=generation_path(generation["kind"]).Nets.count_tokens(**generation),
    )


def count_und_tokens(network: ModelSpec, model: dict) -> int:
    """Tokens of an image to understand; 0 where the network has no understanding encoder."""
    understanding = getattr(network.module, "understanding", None)
    size = model["understanding"]["encoder"]["image_size"]
    return 0 if understanding is None else understanding.encoder.num_tokens(size, size)


def phases_of(settings: dict) -> tuple[Phase, ...]:
    """A stage's phases; the last one lasts to its end."""
    phases = [
        Phase(
            p["until"], p.get("mixture", settings["mixture"]), p.get("sources", settings["sources"])
        )
        for p in settings["phases"]
    ]
    return (*phases, Phase(settings["steps"], settings["mixture"], settings["sources"]))


def compute_dtype(name: str) -> np.dtype:
    """'auto' is bf16 on accelerators and fp32 on CPU."""
    known = ("auto", "float32", "bfloat16")
    if name not in known:
        raise UserError(f"config.dtype is {name!r}; known: {sorted(known)}.")
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def held_dtypes(network: ModelSpec, frozen, dtype) -> dict:
    """{path: dtype} that parameters are held in.

    What trains is fp32; `frozen` paths have the compute dtype, but for the tokenizer, whose ids
    bf16 would change.
    """
    low = lambda path: path in frozen and not path.startswith("generation/tokenizer/")
    return {path: dtype if low(path) else jnp.dtype("float32") for path in network.abstract}


def to_json(value):
    """A config as plain JSON: tuples become lists."""
    if isinstance(value, dict):
        return {key: to_json(v) for key, v in value.items()}
    return [to_json(v) for v in value] if isinstance(value, (tuple, list)) else value
