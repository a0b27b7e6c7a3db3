"""Makes training data from detection data: questions with boxes, and two-round examples of how an expert looks.

    python -m data_prep.curate --format=coco --annotations=boxes.json --images=DIR --output=runs/curated

With --endpoint, --model and --verifier_model, models word and check the questions; without them, templates and a rule do.
See data_prep/CURATION.md.
"""

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.curation import coco, masks, report, voc, yolo
from data_prep.curation.asked import AskedWriter
from data_prep.curation.candidates import Writer
from data_prep.curation.detections import Annotated, Detection
from data_prep.curation.rows import Settings, admit_all, make_rows
from data_prep.curation.templates import TemplateWriter
from vitar_jax.data import questions
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.runtime.endpoint import ChatClient
from vitar_jax.runtime.user_errors import one_line_errors


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Curates as the flags say."""
    curate(_parser().parse_args(argv))


def curate(given: argparse.Namespace) -> None:
    """Reads, words, checks and writes.

    Raises:
      VitarError: If something is wrong that the user can fix.
    """
    if given.concurrency < 1:
        raise ConfigError(f"--concurrency is {given.concurrency}, it must be 1 or more")
    settings = Settings(given.seed, given.count, given.interactive, given.concurrency)
    detections, malformed = admit_all(_read(given), settings.workers)
    if not detections:
        raise DataError(f"{given.annotations}: no image can be used; {malformed[0] if malformed else 'there is none'}")
    clients = _clients(given)
    with contextlib.ExitStack() as stack:
        for client in clients.values():
            stack.callback(client.close)
        outcome = make_rows(detections, _writer(clients, detections, given.seed), settings, given.output)
    questions.write(given.output / "questions.jsonl", outcome.questions)
    questions.write(given.output / "interactive.jsonl", outcome.interactive)
    counts = report.counts(outcome, len(malformed), {name: client.counts for name, client in clients.items()})
    (given.output / "report.json").write_text(json.dumps(counts | {"malformed_records": malformed}, indent=2) + "\n")
    sheet = report.write_sheet(given.output / "sheet", outcome, f"Curated from {given.annotations.name}")
    print(report.table(counts))
    print(f"rows: {given.output / 'questions.jsonl'}, {given.output / 'interactive.jsonl'}")
    print(f"some to look at: {sheet}")


def _read(given: argparse.Namespace) -> Iterator[Annotated | DataError]:
    if given.format in ("coco", "voc"):
        return {"coco": coco, "voc": voc}[given.format].read(given.annotations, given.images)
    if given.classes is None:
        raise ConfigError(f"--format={given.format} needs --classes=FILE, the names of its numbers")
    return {"yolo": yolo, "masks": masks}[given.format].read(given.annotations, given.images, given.classes)


def _clients(given: argparse.Namespace) -> dict[str, ChatClient]:
    """The writer and its verifier, where an endpoint is named."""
    if not given.endpoint:
        if given.model or given.verifier_endpoint or given.verifier_model:
            raise ConfigError("a model is named, and no --endpoint to ask it at")
        return {}
    if not given.model or not given.verifier_model:
        raise ConfigError("--endpoint needs --model, which words the questions, and --verifier_model, which answers them")
    try:
        options = {"seed": given.seed, **json.loads(given.request)}
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--request is {given.request!r}, it must be a JSON object ({error})") from error
    elsewhere = bool(given.verifier_endpoint)
    asked = {
        "writer": (given.endpoint, given.model, given.key_variable),
        "verifier": (
            given.verifier_endpoint or given.endpoint,
            given.verifier_model,
            given.verifier_key_variable if elsewhere else given.key_variable,
        ),
    }
    return {
        name: ChatClient(
            url,
            model,
            given.output / "replies" / f"{name}.jsonl",
            options,
            key=os.environ.get(variable, ""),
            concurrency=given.concurrency,
            timeout=given.timeout,
            retries=given.retries,
        )
        for name, (url, model, variable) in asked.items()
    }


def _writer(clients: dict[str, ChatClient], detections: list[Detection], seed: int) -> Writer:
    if clients:
        return AskedWriter(**clients)
    return TemplateWriter(sorted({name for detection in detections for name in detection.boxes}), seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--format", choices=("coco", "voc", "yolo", "masks"), required=True)
    add("--annotations", type=Path, required=True, help="the COCO file, or the folder of XML, text or PNG files")
    add("--images", type=Path, required=True, help="folder of the images")
    add("--classes", type=Path, help="names of classes for yolo and masks: a name a line, or YAML with `names`")
    add("--output", type=Path, required=True, help="directory of the rows")
    add("--seed", type=int, default=0)
    add("--count", type=int, default=0, help="most rows; 0: as many as there are")
    add("--interactive", type=float, default=1 / 17, help="share of the images whose rows get a demonstration")
    add("--endpoint", default="", help="where a model is served, say http://127.0.0.1:8000/v1; without it, templates")
    add("--model", default="", help="the model that words questions and thoughts")
    add("--key_variable", default="OPENAI_API_KEY", help="environment variable with the endpoint's key, if it needs one")
    add("--verifier_endpoint", default="", help="where the verifier is served; by default at --endpoint, with its key")
    add("--verifier_model", default="", help="the model that checks questions by answering them")
    add("--verifier_key_variable", default="VERIFIER_API_KEY", help="the same for --verifier_endpoint")
    add("--request", default='{"temperature": 0.0, "max_tokens": 1024}', help="further fields of a request, as JSON")
    add("--concurrency", type=int, default=8, help="requests, and images, at a time")
    add("--timeout", type=float, default=120.0, help="seconds until an endpoint says something")
    add("--retries", type=int, default=5, help="further attempts at a request that failed")
    return parser


if __name__ == "__main__":
    main()
