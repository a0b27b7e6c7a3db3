"""The command serves, drains on SIGTERM, and names wrong flags."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from openai import OpenAI

import vitar_jax.serve.__main__ as serve
from tests.kit.errors import check_error
from tests.kit.processes import caching, free_port, run, simulated, start

ASKED = [{"role": "user", "content": "Which texture?"}]


@pytest.mark.slow
def test_a_terminated_server_answers_what_it_has(checkpoint: Path, tmp_path: Path) -> None:
    """The reply that has begun is whole, another one is not begun, and the exit status is 0."""
    port = free_port()
    (tmp_path / "key").write_text("opensesame\n")
    command = [sys.executable, "-m", "vitar_jax.serve", f"--checkpoint={checkpoint}", f"--port={port}", "--slots=2"]
    command += [f"--api_key_file={tmp_path / 'key'}", "--model=micro"]
    environ = simulated(1) | caching(tmp_path / "compiled")
    running = start(*command, environ=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert running.stdout
        said = running.stdout.readline()
        assert f"model micro: serving at http://127.0.0.1:{port}/v1" in said, said + running.stdout.read()
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="opensesame", max_retries=20) as client:
            chunks = client.chat.completions.create(model="micro", messages=ASKED, stream=True)  # type: ignore[arg-type]
            next(iter(chunks))
            running.send_signal(signal.SIGTERM)
            assert list(chunks)[-1].choices[0].finish_reason in ("stop", "length")
            with pytest.raises(openai.APIConnectionError):
                client.with_options(max_retries=0).models.list()
        assert running.wait(60) == 0, running.stdout.read()
    finally:
        running.kill()


@pytest.mark.slow
def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; import runpy; runpy.run_module('vitar_jax.serve', run_name='__main__')"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 2
    check_error(done.stderr, "install the extra `serve`")


@pytest.mark.parametrize(
    "flags, text",
    [
        ([], "expected --checkpoint"),
        (["--checkpoint=x", "--files=nowhere"], "--files=nowhere: is not a folder"),
        (["--checkpoint=x", "--api_key_file=nowhere"], "--api_key_file=nowhere: cannot be read"),
        (["--checkpoint=x", "--api_key_variable=VITAR_NO_KEY"], "--api_key_variable=VITAR_NO_KEY: is not set"),
    ],
)
def test_wrong_flags_are_one_line(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], flags: list[str], text: str
) -> None:
    assert main(serve, *flags) == 2
    said = capsys.readouterr().err
    assert text in said and said.count("\n") == 1
