"""Runs a user's reward in processes that can be killed.

A thread that backtracks in `re` or computes with huge integers holds the interpreter's lock. It cannot be stopped, and the
program handles no signal meanwhile. A process can be killed.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from PIL import Image

from vitar_jax.episodes.trajectory import Trajectory, plain_value
from vitar_jax.runtime.function_address import Address

Function = Callable[[Trajectory], Mapping[str, float]]
Parts = list[tuple[str, float]]

_START = "import json, sys; o = json.loads(sys.argv[1]); sys.path[:] = o['path']; import {0}; {0}.serve(**o['serve'])"
_START_SECONDS = 300.0  # an import that takes longer counts as failed
_GRACE_SECONDS = 5.0  # after the timeout, a process whose parent is gone ends itself


class Raised(Exception):
    """The function raised an exception, or its process ended. The message is the `repr` of the exception."""


class NotFound(Exception):
    """The function cannot be loaded in another process."""


class RewardProcesses:
    """Processes that run one function: one per concurrent call, started when needed and used again.

    A process loads the function by its address and never initializes JAX's devices. The function sees the record that
    `Trajectory.to_json` keeps. Thread-safe.
    """

    def __init__(self, address: Address):
        self._address = address
        self._idle: list[_Process] = []
        self._started: set[_Process] = set()
        weakref.finalize(self, _kill_all, self._started)

    def __call__(self, trajectory: Trajectory, timeout: float) -> Parts:
        """Returns the parts of a trajectory's reward.

        Raises:
          TimeoutError: If the function takes longer than `timeout` seconds. Its process is killed.
          Raised: If the function raises.
          NotFound: If no process can load the function.
        """
        message = _encode(trajectory, timeout)
        process = self._take()
        try:
            reply = process.ask(message, timeout)
        except BaseException:
            self._kill(process)
            raise
        self._idle.append(process)
        if "error" in reply:
            raise Raised(reply["error"])
        return [(name, value) for name, value in reply["parts"]]

    def _take(self) -> "_Process":
        """Returns an idle process, or a new one that has loaded the function."""
        with contextlib.suppress(IndexError):
            while True:
                process = self._idle.pop()
                if process.alive:
                    return process
                self._kill(process)
        process = _Process(self._address)
        self._started.add(process)
        try:
            loaded = process.receive(_START_SECONDS)
        except (TimeoutError, Raised) as error:
            self._kill(process)
            raise NotFound(str(error)) from error
        except BaseException:
            self._kill(process)
            raise
        if "error" in loaded:
            self._kill(process)
            raise NotFound(loaded["error"])
        return process

    def _kill(self, process: "_Process") -> None:
        self._started.discard(process)
        process.kill()


def _kill_all(processes: "set[_Process]") -> None:
    for process in list(processes):
        process.kill()


class _Process:
    """A process that has been started; its first message says whether it has loaded the function."""

    def __init__(self, address: Address):
        self._connection, theirs = Pipe()
        options = {"descriptor": theirs.fileno(), "parent": os.getpid()}
        # A session of its own, so that signals to a run's process group do not reach it, and its children die with it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(__name__), json.dumps({"path": sys.path, "serve": options})],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        theirs.close()
        self._send(json.dumps(dataclasses.asdict(address)).encode())  # may be too long for an argument

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, message: bytes, timeout: float) -> dict[str, Any]:
        self._send(message)
        return self.receive(timeout)

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # `receive` says how it ended
            self._connection.send_bytes(message)

    def receive(self, timeout: float) -> dict[str, Any]:
        if not self._connection.poll(timeout):
            raise TimeoutError(f"{timeout:g} s")
        try:
            return json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionResetError) as error:
            raise Raised(f"its process ended with status {self._process.wait()}") from error

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()


def parts_of(function: Function, trajectory: Trajectory) -> Parts:
    """Calls a reward and returns its parts. Raises whatever the function raises, and what a wrong kind of value raises."""
    return [(name if isinstance(name, str) else repr(name), float(value)) for name, value in function(trajectory).items()]


def serve(descriptor: int, parent: int) -> None:
    """Loads the function of the first message and answers the others, until the parent process is gone."""
    connection = Connection(descriptor)

    def reply(**values: Any) -> None:
        connection.send_bytes(json.dumps(values).encode())

    try:
        function = Address(**json.loads(connection.recv_bytes())).find()
    except BaseException as error:  # SystemExit too
        reply(error=repr(error))
        return
    reply()
    while True:
        while not connection.poll(_GRACE_SECONDS):
            if os.getppid() != parent:
                return
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        trajectory, timeout = _decode(message)
        # The default action of SIGALRM ends the process, also while the interpreter is busy.
        signal.setitimer(signal.ITIMER_REAL, timeout + _GRACE_SECONDS)
        try:
            values: dict[str, Any] = {"parts": parts_of(function, trajectory)}
        except BaseException as error:  # SystemExit too
            values = {"error": repr(error)}
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply(**values)


def _encode(trajectory: Trajectory, timeout: float) -> bytes:
    """Returns a line of JSON, followed by the pixels of the images."""
    pixels = {image.sha256: image.pixels for image in trajectory.images}
    contents = {sha256: image.tobytes() for sha256, image in pixels.items()}
    images = [(sha256, image.mode, image.size, len(contents[sha256])) for sha256, image in pixels.items()]
    header = {"timeout": timeout, "record": trajectory.to_json(), "images": images}
    return b"".join([json.dumps(header, default=plain_value).encode(), b"\n", *contents.values()])


def _decode(message: bytes) -> tuple[Trajectory, float]:
    line, _, rest = message.partition(b"\n")
    header = json.loads(line)
    pixels, start = {}, 0
    for sha256, mode, size, length in header["images"]:
        pixels[f"{sha256}.png"] = Image.frombytes(mode, size, rest[start : start + length])
        start += length
    return Trajectory.from_json(header["record"], Path(), lambda path: pixels[path.name]), header["timeout"]
