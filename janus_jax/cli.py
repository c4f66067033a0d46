"""How every command starts and ends: flags, logging, exit codes.

0 means done, 2 a user's mistake, told in a sentence, and 75 (try again later) that SIGTERM came, the state was saved
and the same command continues.
"""

import functools
import importlib
import importlib.resources
import math
import re
import sys
from pathlib import Path
from typing import NamedTuple

import jax
from absl import app, flags, logging
from ml_collections.config_dict import config_dict
from ml_collections.config_flags import config_flags

from janus_jax import distributed
from janus_jax.errors import UserError

PACKAGE = str(Path(__file__).parent)
flags.disclaim_key_flags()  # --help lists what is defined here by the command that defines it


class _ConfigParser(config_flags.ConfigFileFlagParser):
    """Reads the current folder's config file or, where it has none of that name, the installed one."""

    def parse(self, path):
        file, *stage = path.split(":", 1)
        installed = importlib.resources.files("configs") / Path(file).name
        if Path(file).parent == Path("configs") and not Path(file).exists() and installed.is_file():
            file = str(installed)
        return super().parse(":".join([file, *stage]))


@functools.cache
def config_flag():
    """Defines --config, a file like configs/pro_7b.py or configs/pro_7b.py:2; once per process."""
    holder = config_flags.DEFINE_config_file(
        "config", None, "Config file, with :STAGE for one stage.", lock_config=True
    )
    flags.FLAGS["config"].parser = _ConfigParser("config", lock_config=True)
    return holder


class _Finite(flags.FloatParser):
    def convert(self, argument):
        value = super().convert(argument)
        if not math.isfinite(value):
            raise ValueError("it must be finite")
        return value


def define_finite(name, default, text, **bounds):
    """A flag that holds a float, neither infinite nor NaN; `bounds` are absl's lower_bound and upper_bound."""
    return flags.DEFINE(_Finite(**bounds), name, default, text, serializer=flags.ArgumentSerializer())


@functools.cache
def distributed_flags():
    """Defines --distributed, --num_processes and --process_id; returns the context manager that connects by them."""
    address = flags.DEFINE_string(
        "distributed", None, "Runs with other processes: 'auto' on TPU VMs, GKE and SLURM, or HOST:PORT of process 0."
    )
    count = flags.DEFINE_integer("num_processes", None, "Number of processes, with --distributed=HOST:PORT.", lower_bound=1)
    index = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.", lower_bound=0)
    return lambda: distributed.connected(address.value, num_processes=count.value, process_id=index.value)


class SamplingFlags(NamedTuple):
    """Which checkpoint to sample from, and how."""

    checkpoint: flags.FlagHolder
    guidance: flags.FlagHolder
    temperature: flags.FlagHolder
    top_k: flags.FlagHolder
    top_p: flags.FlagHolder
    steps: flags.FlagHolder
    weights: flags.FlagHolder
    dtype: flags.FlagHolder

    def image_settings(self):
        """The settings that `Sampler.guidance` takes; None where a flag is not given.

        Raises:
          UserError: for --top_p=0.
        """
        if self.top_p.value == 0:
            raise UserError("--top_p must be above 0; --temperature=0 takes the most probable code.")
        return dict(
            scale=self.guidance.value,
            temperature=self.temperature.value,
            top_k=self.top_k.value,
            top_p=self.top_p.value,
            steps=self.steps.value,
        )


@functools.cache
def sampling_flags():
    """Defines --checkpoint, --guidance and the other flags of sampling; once per process."""
    return SamplingFlags(
        checkpoint=flags.DEFINE_string(
            "checkpoint", None, "A run's workdir, or one of its checkpoints/STEP."
        ),
        guidance=define_finite(
            "guidance", None, "Images: guidance scale, 1 is off; default: 5 (Janus), 2 (JanusFlow)."
        ),
        temperature=define_finite(
            "temperature",
            None,
            "0 is greedy; default: 1 for images (Janus), 0 for answers.",
            lower_bound=0,
        ),
        top_k=flags.DEFINE_integer(
            "top_k", None, "Images: only the k most probable codes (Janus).", lower_bound=1
        ),
        top_p=define_finite(
            "top_p",
            None,
            "Images: only the most probable codes, of total probability p (Janus).",
            lower_bound=0,
            upper_bound=1,
        ),
        steps=flags.DEFINE_integer(
            "steps", None, "Images: Euler steps (JanusFlow); default: 30.", lower_bound=1
        ),
        weights=flags.DEFINE_enum(
            "weights", "ema", ["ema", "raw"], "ema: the moving average, where the run has one."
        ),
        dtype=flags.DEFINE_enum(
            "dtype",
            None,
            ["float32", "bfloat16"],
            "Precision of the computation; default: the run's own.",
        ),
    )


def config_file():
    """The path given to --config, without its stage."""
    return config_flags.get_config_filename(flags.FLAGS["config"]).rsplit(":", 1)[0]


def run(main, *, usage):
    """Runs a command's main(); `usage` is its module docstring, shown by --help."""
    _run(lambda _: main(), usage=usage, words=0)


def run_commands(main, *, commands, usage):
    """As `run`, for a module whose first argument picks one of several commands: main(command)."""

    def start(argv):
        if len(argv) != 2 or argv[1] not in commands:
            raise UserError(f"Say which of {list(commands)}, not {' '.join(argv[1:])!r}; --help shows examples.")
        main(argv[1])

    _run(start, usage=usage, words=1)


def _run(start, *, usage, words):
    sys.modules["__main__"].__doc__ = usage
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.python_handler.setFormatter(_Plain())
    handler.addFilter(lambda record: record.levelno >= 40 or record.pathname.startswith(PACKAGE))  # Orbax tells every move
    try:
        app.run(start, flags_parser=lambda argv: _parse(argv, words))
    except UserError as error:
        _stop(error)


def _parse(argv, words):
    """Parses flags; what is wrong with them is a user's mistake too, misspelt config fields included."""
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            getattr(flags.FLAGS.config, "keys", None)  # a file that could not be read says so when it is asked anything
    except (
        flags.Error,
        ImportError,
        SyntaxError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        OSError,
        config_dict.JSONDecodeError,
    ) as error:
        what = str(error if isinstance(error, (OSError, SyntaxError)) else error.args[0] if error.args else error)
        if "Traceback" in what or "earlier failure" in what:  # of a config file: what it said stands last
            what = re.split(r"Error: |failure to load: ", what.strip().splitlines()[-1].strip(), maxsplit=1)[-1]
        if meant := re.search(r'Did you mean "(.*)" instead of "(.*)"', what):
            what = f"--config has no field '{meant[2]}'; did you mean '{meant[1]}'?"
        if isinstance(error, (AttributeError, KeyError)) and " " not in what:  # a bare name, the field not found
            name = what.strip("\"'")
            what = f"--config has no field '{name}'; the config's page and configs/common.py list them."
        _stop(what)
    if rest[1 + words :]:
        _stop(f"Unknown argument {rest[1 + words]!r}; flags look like --name=value, --help lists them.")
    return rest


def _stop(message):
    """Says what went wrong and exits with code 2."""
    print(f"Error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(2)


class _Plain(logging.PythonFormatter):
    """Time and message; the file and line only where something is wrong."""

    def format(self, record):
        place = "" if record.levelno <= 20 else f"{record.levelname.lower()}: "
        return f"{self.formatTime(record, '%H:%M:%S')} {place}{record.getMessage()}"


def enable_compile_cache(folder):
    """Keeps compiled programs in a folder, so that the next start is quick."""
    if jax.config.jax_compilation_cache_dir is None:  # the environment may name a shared one
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def load_config(name, stage="all"):
    """A shipped config by name, such as 'pro_1b': a ConfigDict."""
    return importlib.import_module(f"configs.{name}").get_config(stage)
