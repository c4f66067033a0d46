"""How commands start and end: flags, logging, exit codes.

Exit code 0 means success, and 2 a mistake of the user, with one message and no traceback. 75 (try
again later) means that SIGTERM arrived and the state was saved: the same command resumes.
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
flags.disclaim_key_flags()  # --help lists flags under the command that defines them


class _ConfigParser(config_flags.ConfigFileFlagParser):
    """Reads a config file from the current folder or, if it is not there, the installed one."""

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
    """A float that is neither infinite nor NaN."""

    def convert(self, argument):
        value = super().convert(argument)
        if not math.isfinite(value):
            raise ValueError("it must be finite")
        return value


def define_finite(name, default, text, **bounds):
    """Defines a flag for a finite float; `bounds` are absl's lower_bound and upper_bound."""
    parser = _Finite(**bounds)
    return flags.DEFINE(parser, name, default, text, serializer=flags.ArgumentSerializer())


@functools.cache
def distributed_flags():
    """Defines --distributed, --num_processes and --process_id.

    Returns:
      a function without arguments; it returns the context manager that connects the processes.
    """
    address = flags.DEFINE_string(
        "distributed",
        None,
        "Connects processes: 'auto' on TPU VMs, GKE and SLURM, or HOST:PORT of process 0.",
    )
    count = flags.DEFINE_integer(
        "num_processes",
        None,
        "Number of processes, with --distributed=HOST:PORT.",
        lower_bound=1,
    )
    index = flags.DEFINE_integer(
        "process_id", None, "Index of this process, from 0.", lower_bound=0
    )

    def connect():
        return distributed.connected(
            address.value, num_processes=count.value, process_id=index.value
        )

    return connect


class SamplingFlags(NamedTuple):
    """The flags of a checkpoint and its sampling settings."""

    checkpoint: flags.FlagHolder
    guidance: flags.FlagHolder
    temperature: flags.FlagHolder
    top_k: flags.FlagHolder
    top_p: flags.FlagHolder
    steps: flags.FlagHolder
    weights: flags.FlagHolder
    dtype: flags.FlagHolder

    def image_settings(self):
        """The arguments of `Sampler.guidance`; None for flags that are not given.

        Raises:
          UserError: for --top_p=0.
        """
        if self.top_p.value == 0:
            raise UserError(
                "--top_p must be above 0; --temperature=0 takes the most probable code."
            )
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
            "guidance", None, "Images: guidance scale, 1 is off; default: the run's config.samples."
        ),
        temperature=define_finite(
            "temperature",
            None,
            "0 is greedy; default: the run's config.samples for images (Janus), 0 for answers.",
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
    """Runs main() of a command; --help shows `usage`, its module docstring."""
    _run(lambda _: main(), usage=usage, num_words=0)


def run_commands(main, *, commands, usage):
    """As `run`, for a module whose first argument is the name of a command: main(command)."""

    def start(argv):
        if len(argv) != 2 or argv[1] not in commands:
            given = " ".join(argv[1:])
            raise UserError(f"{given!r} is not one of {list(commands)}; --help shows examples.")
        main(argv[1])

    _run(start, usage=usage, num_words=1)


def _run(start, *, usage, num_words):
    """Runs start(argv); the first `num_words` arguments are not flags."""
    sys.modules["__main__"].__doc__ = usage
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.python_handler.setFormatter(_Plain())
    # Orbax logs every step it takes; of other packages only errors are shown.
    handler.addFilter(lambda record: record.levelno >= 40 or record.pathname.startswith(PACKAGE))
    try:
        app.run(start, flags_parser=lambda argv: _parse(argv, num_words))
    except UserError as error:
        _stop(error)


# What absl and ml_collections raise for wrong flags, config files and config fields.
_FLAG_ERRORS = (
    flags.Error,
    ImportError,
    SyntaxError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
    config_dict.JSONDecodeError,
)


def _parse(argv, num_words):
    """Parses flags and returns the other arguments; wrong ones end the program with a message."""
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS:
            getattr(flags.FLAGS.config, "keys", None)  # raises if the file could not be read
    except _FLAG_ERRORS as error:
        _stop(_flag_message(error))
    unknown = rest[1 + num_words :]
    if unknown:
        _stop(f"Unknown argument {unknown[0]!r}; flags look like --name=value, --help lists them.")
    return rest


def _flag_message(error):
    """The message for an exception of `_FLAG_ERRORS`; names misspelt config fields."""
    if isinstance(error, (OSError, SyntaxError)) or not error.args:
        message = str(error)
    else:
        message = str(error.args[0])
    if "Traceback" in message or "earlier failure" in message:
        # A config file raised an error: its message is at the end of the last line.
        last_line = message.strip().splitlines()[-1].strip()
        message = re.split(r"Error: |failure to load: ", last_line, maxsplit=1)[-1]
    if match := re.search(r'Did you mean "(.*)" instead of "(.*)"', message):
        return f"--config has no field '{match[2]}'; did you mean '{match[1]}'?"
    if isinstance(error, (AttributeError, KeyError)) and " " not in message:  # only a field's name
        name = message.strip("\"'")
        return f"--config has no field '{name}'; the config file and configs/common.py list them."
    return message


def _stop(message):
    """Prints an error message and exits with code 2."""
    print(f"Error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(2)


class _Plain(logging.PythonFormatter):
    """Time and message, with the level of warnings and errors."""

    def format(self, record):
        level = "" if record.levelno <= 20 else f"{record.levelname.lower()}: "
        return f"{self.formatTime(record, '%H:%M:%S')} {level}{record.getMessage()}"


def enable_compile_cache(folder):
    """Keeps compiled programs in a folder, so that the next start is fast."""
    if jax.config.jax_compilation_cache_dir is None:  # the environment may set another folder
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def load_config(name, stage="all"):
    """Loads an installed config by name, such as 'pro_1b': a ConfigDict."""
    return importlib.import_module(f"configs.{name}").get_config(stage)
