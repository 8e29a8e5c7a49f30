"""Processes that find the heavy libraries imported, as one that Python starts anew does not.

A command imports torch, transformers and lm-eval for longer than it does anything else in these
tests. Here a server imports them once, and each command runs in a fork of it: a process of its own,
with its own folder, environment, streams, signals and end, which imports evomerge itself. Not its
own is what the libraries read from the environment when they are imported.
"""

import atexit
import functools
import gc
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver, process
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "cma",
        "datasets",
        "lm_eval.filters.extraction",
        "lm_eval.models.huggingface",
        "lm_eval.tasks",
        "moocore",
        "pydantic",
        "rich.live",
        "safetensors.torch",
        "sqlite_utils",
        "transformers.conversion_mapping",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
    ]
)


class Process:
    """A command that runs, with what the tests use of a `subprocess.Popen`.

    Its two streams are kept for `communicate`, or both are written to `terminal`, a descriptor.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        preexec_fn: Callable[[], object] | None = None,
        terminal: int | None = None,
    ):
        self._kept = []
        if terminal is None:
            self._kept = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        numbers = [file.fileno() for file in self._kept] or [terminal, terminal]
        streams = [Connection(os.dup(number)) for number in numbers]  # which can be sent
        environment = dict(os.environ if env is None else env)
        arguments = (list(map(str, words)), str(cwd or Path.cwd()), environment, streams)
        _serve()
        self._process = FORKS.Process(target=_become, args=(*arguments, preexec_fn))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode  # of a signal, negative

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        written = []
        for file in self._kept:
            with file:
                file.seek(0)
                written.append(file.read())
        out, error = written
        return out, error

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def run(words: Sequence[str], **options) -> subprocess.CompletedProcess:
    """Run a command to its end; options are those of `Process`."""
    process = Process(words, **options)
    out, error = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, error)


@functools.cache
def _serve():
    """Start the server on one thread, which no environment of a fork can change any more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()


def _become(words, folder, environment, streams, preexec_fn):
    """Do what `python WORDS` does: a file, `-m MODULE` or `-c CODE`, each with its arguments."""
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream.fileno(), number)
        stream.close()
    gc.freeze()  # what was imported
    os.chdir(folder)
    process.ORIGINAL_DIR = folder  # of the processes that it may start
    os.environ.clear()
    os.environ.update(environment)
    what = words.pop(0) if words[0] in ("-c", "-m") else None
    sys.argv[:] = words if what is None else ["-c", *words[1:]]
    first = str(Path(words[0]).absolute().parent) if what is None else folder
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    # one environment may lie on top of another
    installed = [p for p in sys.path if p.startswith(sys.base_prefix) or "site-packages" in p]
    sys.path[:] = [first, *filter(None, given), *installed, str(ROOT)]
    importlib.invalidate_caches()
    if preexec_fn:
        preexec_fn()
    try:
        if what == "-m":
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        elif what == "-c":
            module = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(words[0], "<string>", "exec"), vars(module))
        else:
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a forked process leaves them out
