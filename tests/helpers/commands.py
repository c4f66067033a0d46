"""Runs commands: in this process, which is quick, or in a child process, for tests that kill it."""

import contextlib
import functools
import io
import logging
import os
import runpy
import signal
import subprocess
import sys
import traceback
from typing import NamedTuple
from unittest import mock

import jax
from absl import app, flags
from absl import logging as absl_logging
from absl.testing import flagsaver

from janus_jax import cli
from tests.conftest import ROOT, environment


class Result(NamedTuple):
    """How a command ended."""

    code: int  # exit code; 1 after an exception, whose traceback is at the end of `err`
    out: str
    err: str  # the log is here


def run(command, *arguments):
    """Runs `python -m janus_jax.COMMAND ARGUMENTS` inside this process, with its 8 CPU devices.

    Flags, logging, signal handlers, environment variables and JAX's settings are those of before
    afterwards. Use `start` for a run that connects to other processes or that a signal must end.

    Args:
      command: 'train', 'sample', ...
      arguments: of the command line; anything that is not a string is converted.

    Returns:
      Result.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_output_to(out, err))
        stack.enter_context(_no_flags_of_commands())
        stack.enter_context(_process_state())
        stack.enter_context(mock.patch.object(sys, "argv", [command, *map(str, arguments)]))
        code = _exit_code(f"janus_jax.{command}")
    return Result(code, out.getvalue(), err.getvalue())


def start(command, *arguments, devices=8):
    """Starts the same as a child process: a Popen whose stdout and stderr are pipes of text."""
    return subprocess.Popen(
        [sys.executable, "-m", f"janus_jax.{command}", *map(str, arguments)],
        env=environment(devices=devices),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process, *, timeout=400):
    """Waits for a process of `start`: Result."""
    out, err = process.communicate(timeout=timeout)
    return Result(process.returncode, out, err)


def _exit_code(module):
    """Executes a module as `__main__` and returns the exit code that a process would have had."""
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _output_to(out, err):
    """Sends stdout, stderr and absl's log to two streams, and resets all logging afterwards."""
    root, absl_logger = logging.getLogger(), absl_logging.get_absl_logger()
    handler = absl_logging.get_absl_handler()
    stream_handler = handler.python_handler
    saved = [
        (target, {name: _copied(value) for name, value in vars(target).items()})
        for target in (root, absl_logger, handler, stream_handler)
    ]
    # The handler keeps the stderr of the moment at which absl was imported.
    stream_handler.stream = err
    root.handlers = [h for h in root.handlers if h is not handler]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        for target, attributes in saved:
            vars(target).update(attributes)
        logging.Logger.manager._clear_cache()  # loggers cache which levels are enabled


@contextlib.contextmanager
def _no_flags_of_commands():
    """Removes the flags that commands imported by tests have defined, and puts them back."""
    saved = {name: _copied(value) for name, value in vars(flags.FLAGS).items()}
    values = flagsaver.save_flag_values(flags.FLAGS)
    for name in list(flags.FLAGS):
        if _is_ours(name, flags.FLAGS.find_module_defining_flag(name, "")):
            delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    with contextlib.ExitStack() as stack:
        # absl's app runs these once per process.
        for owner, attribute in (
            (app, "_define_help_flags_called"),
            (app._run_init, "done"),
            (app._register_and_parse_flags_with_usage, "done"),
        ):
            stack.enter_context(mock.patch.object(owner, attribute, False))
        for name, function in list(vars(cli).items()):
            if hasattr(function, "cache_clear"):  # defines flags once per process
                fresh = functools.cache(function.__wrapped__)
                stack.enter_context(mock.patch.object(cli, name, fresh))
        try:
            yield
        finally:
            vars(flags.FLAGS).clear()
            vars(flags.FLAGS).update(saved)
            flagsaver.restore_flag_values(values, flags.FLAGS)


def _is_ours(name, module):
    """Whether a flag is defined by this project: absl names a main module after its file."""
    package = module.partition(".")[0]
    is_config = name == "config" or name.startswith("config.")
    return is_config or package in ("", "janus_jax", "tests") or os.path.sep in module


@contextlib.contextmanager
def _process_state():
    """Resets what else a command may change in its process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    settings = dict(jax.config.values)
    loaded = {name: module for name, module in sys.modules.items() if _is_command(name)}
    for name in loaded:
        del sys.modules[name]  # runpy warns when the module it executes has been imported
    try:
        with (
            mock.patch.dict(os.environ, COLUMNS="80"),  # width of tables
            mock.patch.object(os, "_exit", sys.exit),  # a failed run must not end pytest
            mock.patch.object(app, "EXCEPTION_HANDLERS", []),
        ):
            yield
    finally:
        sys.modules.update(loaded)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name, value in settings.items():
            if jax.config.values[name] is not value:
                jax.config.update(name, value)


def _is_command(name):
    """Whether a module defines a command's flags when it is imported."""
    return name == "janus_jax.sample" or name.startswith("janus_jax.") and name.endswith("__main__")


def _copied(value):
    """The same containers, two levels deep, around the same objects."""
    if isinstance(value, dict):
        return type(value)((k, list(v) if isinstance(v, list) else v) for k, v in value.items())
    return list(value) if isinstance(value, list) else value
