"""From a checkpoint to a Sampler: what `sample`, `evaluate` and `serve` start with."""

import jax

from janus_jax import checkpoint, hardware, sharding
from janus_jax.data.tokenizer import TextTokenizer
from janus_jax.errors import UserError
from janus_jax.inference.sampler import Sampler, Template
from janus_jax.objectives import OBJECTIVES
from janus_jax.objectives.joint import Joint
from janus_jax.recipe import freezing
from janus_jax.recipe.checks import complete
from janus_jax.recipe.stage import compute_dtype, held_dtypes


def load_sampler(path, *, mesh=None, weights="ema", dtype=None) -> Sampler:
    """Loads a trained model from a checkpoint.

    Args:
      path: a workdir (its newest complete step) or one checkpoint.
      mesh: where the parameters go; by default `inference_mesh`.
      weights: 'ema', the moving average where the run has one, or 'raw'.
      dtype: what to compute in; by default the config's own. The tokenizer stays in fp32.

    Raises:
      UserError: for a checkpoint that holds only a part of a model.
    """
    saved = checkpoint.open_saved(path)
    config, stage = saved.about["config"], saved.about["stage"]
    if stage == freezing.TOKENIZER:
        raise UserError(
            f"The newest checkpoint of {str(path)!r} holds an image tokenizer only; train its next "
            "stage first."
        )
    if config is None:
        raise UserError(
            f"{str(path)!r} holds a single tower; train a model from it with --config.init_from."
        )
    if saved.about["tokenizer"] is None:
        raise UserError(
            f"{str(path)!r} has no text tokenizer; import it again from a folder with "
            "a tokenizer.json."
        )
    dtype = compute_dtype(dtype or config["dtype"])
    objective = Joint
    if stage != freezing.IMPORTED:
        objective = OBJECTIVES[complete(config)["stages"][stage]["objective"]]
    network = objective.build_network(config["model"], dtype=dtype)
    stored = checkpoint.param_structs(saved)
    # Answering needs no generation nets
    needed = lambda path: path in stored or not path.startswith("generation/")
    abstract = abstract_for_inference(network, dtype, mesh=mesh)
    abstract = {path: leaf for path, leaf in abstract.items() if needed(path)}
    params = checkpoint.load_params(saved, abstract, weights=weights)
    kind = "chat" if stage == freezing.IMPORTED else config["stages"][stage]["template"]
    template = Template(kind, tuple(config["data"]["roles"]), config["data"]["system_prompt"])
    tokenizer = TextTokenizer(saved.about["tokenizer"])
    return Sampler(
        network, params, tokenizer, template=template, defaults=sampling_defaults(config)
    )


def sampling_defaults(config):
    """How a run's own samples are generated, `config.samples`: {setting: value}."""
    samples = config["samples"]
    settings = {"scale": samples["guidance"], "temperature": samples.get("temperature")}
    return {name: value for name, value in settings.items() if value is not None}


def abstract_for_inference(network, dtype, *, mesh=None):
    """{path: ShapeDtypeStruct with its sharding} of a network's parameters, as sampling holds them.

    Args:
      network: ModelSpec.
      dtype: what to compute in.
      mesh: where they go; by default `inference_mesh`.
    """
    dtypes = held_dtypes(network, network.abstract, dtype)
    mesh = mesh or inference_mesh(network, dtypes)
    shardings = sharding.param_shardings(mesh, network.abstract, network.axes)
    return {
        path: jax.ShapeDtypeStruct(leaf.shape, dtypes[path], sharding=shardings[path])
        for path, leaf in network.abstract.items()
    }


def inference_mesh(network, dtypes):
    """The mesh of all devices for sampling, on which no weight is transferred between two tokens.

    Each device holds all weights, or its share of heads, MLP and vocabulary where they would fill
    more than a third of it: the decoding loop copies the LLM's layers once
    (`decode.make_decode_step`), and the caches need memory.
    """
    needed = sum(leaf.size * dtypes[path].itemsize for path, leaf in network.abstract.items())
    available = hardware.find_chip(jax.devices()[0].device_kind).memory / 3 or needed
    tensor = 1
    while needed > available * tensor and jax.device_count() % (2 * tensor) == 0:
        tensor *= 2
    return sharding.make_mesh(data=-1, fsdp=1, tensor=tensor)
