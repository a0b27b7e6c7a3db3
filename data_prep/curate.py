"""Makes training data from detection data: questions with boxes, and demonstrations of an expert's looks.

    python -m data_prep.curate --format=coco --annotations=boxes.json --images=DIR --output=runs/curated

With --endpoint, --model and --verifier_model, language models word and check the questions. Without them, the questions are
templates, and a rule checks them. With --format=masks, --traces makes traces in place of questions with boxes: reasoning and
an answer whose every object has a mask. See docs/curation.md.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.curation import coco, masks, report, voc, yolo
from data_prep.curation.asked import TOPICS, AskedWriter
from data_prep.curation.candidates import KINDS, Kind, Writer
from data_prep.curation.detections import Annotated, Detection
from data_prep.curation.files import Ignored
from data_prep.curation.rows import Admitted, Settings, admit_all, make_rows
from data_prep.curation.templates import QUESTIONS, TemplateWriter
from data_prep.curation.traces import make_traces
from vitar_jax.data import questions
from vitar_jax.episodes.regions import UNITS, refuse_thousandths
from vitar_jax.errors import ConfigError, DataError
from vitar_jax.runtime.endpoint import ChatClient, request_options
from vitar_jax.runtime.user_errors import one_line_errors

REQUEST = {"temperature": 0.0, "max_tokens": 1024}
LISTED = 20  # malformed records named on standard error


@one_line_errors(paths=True)
def main(argv: list[str] | None = None) -> None:
    """Runs curation with the settings of the command line."""
    curate(_parser().parse_args(argv))


def curate(given: argparse.Namespace) -> None:
    """Reads annotations, words and checks questions, and writes rows and a report.

    Raises:
      VitarError: If a flag, the annotations or an endpoint is invalid.
    """
    if given.concurrency < 1:
        raise ConfigError(f"--concurrency: got {given.concurrency}, expected at least 1")
    if given.key and given.key.resolve().is_relative_to(given.output.resolve()):
        raise ConfigError(f"--key: got {given.key}, expected a file outside --output, which holds no names")
    if given.traces and (given.format != "masks" or given.endpoint):
        raise ConfigError("--traces: needs --format=masks, and no --endpoint, because templates word traces")
    _refuse_older(given.output)
    settings = Settings(given.seed, given.count, given.interactive, given.concurrency, _kinds(given))
    admitted = admit_all(_read(given), given.boxes, settings.workers)
    _tell(admitted, given)
    detections = admitted.detections
    if not given.boxes and given.format in ("coco", "voc"):
        _refuse_thousandths(detections, given.annotations)
    if not detections:
        first = admitted.malformed[0] if admitted.malformed else "the annotations list none"
        raise DataError(f"{given.annotations}: no usable image; {first}")
    clients = _clients(given)
    with contextlib.ExitStack() as stack:
        for client in clients.values():
            stack.callback(client.close)
        if given.traces:
            outcome = make_traces(detections, given.seed, given.count, given.output)
        else:
            outcome = make_rows(detections, _writer(clients, detections, given.seed), settings, given.output)
    for name, client in clients.items():
        for reason in client.reasons.values():
            print(f"{name}: {reason}", file=sys.stderr)
    rows = outcome.rows(traces=given.traces)
    files = [given.output / f"{name}.jsonl" for name in rows]
    given.output.mkdir(parents=True, exist_ok=True)
    for file, some in zip(files, rows.values(), strict=True):
        questions.write(file, some)
    counts = report.counts(rows, outcome, admitted, {name: client.counts for name, client in clients.items()})
    (given.output / "report.json").write_text(json.dumps(counts, indent=2) + "\n")
    if not any(rows.values()):
        said = f"{given.annotations}: yields no rows; {report.losses(counts)}"
        if outcome.failed or admitted.malformed or not outcome.rejected:
            raise DataError(said)
        print(f"warning: {said}", file=sys.stderr)  # the data are in order, but every question is ambiguous
    sheet = report.write_sheet(given.output / "sheet", rows)
    print(report.table(counts))
    print(f"rows: {', '.join(map(str, files))}")
    print(f"a sample of the rows: {sheet}")


def _refuse_thousandths(detections: Sequence[Detection], annotations: Path) -> None:
    edges = [edge for one in detections for boxes in one.boxes.values() for box in boxes for edge in (box.x2, box.y2)]
    try:
        refuse_thousandths([one.size for one in detections if one.boxes], max(edges, default=0.0))
    except ValueError as error:
        raise DataError(f"{annotations}: {error}") from error


def _refuse_older(output: Path) -> None:
    """Raises ConfigError if an earlier version, which copied headers and wrote file names, wrote the output."""
    file = output / "report.json"
    copied = any(path.suffix not in (".png", ".partial") for path in (output / "images").glob("*"))
    if copied or (file.is_file() and '"malformed_records"' in file.read_text()):
        raise ConfigError(
            f"--output: {output} was written by an earlier version and may name patients; choose another folder"
        )


def _read(given: argparse.Namespace) -> Iterator[Annotated | Ignored | DataError]:
    allowed = {"yolo": ("", "normalized"), "masks": ("", "pixels")}.get(given.format, ("", *UNITS))
    if given.boxes not in allowed:
        raise ConfigError(f"--boxes: got {given.boxes}, but --format={given.format} is always {allowed[1]}")
    if given.format in ("coco", "voc"):
        return {"coco": coco, "voc": voc}[given.format].read(given.annotations, given.images, given.boxes)
    if given.classes is None:
        raise ConfigError(f"--format={given.format} needs --classes=FILE, which names each class number")
    if given.format == "masks":
        return masks.read(given.annotations, given.images, given.classes, given.output, outlines=given.traces)
    return yolo.read(given.annotations, given.images, given.classes, given.output)


def _tell(admitted: Admitted, given: argparse.Namespace) -> None:
    """Names the malformed records on standard error, and all names in the file that --key asks for. The output names none."""
    for message in admitted.malformed[:LISTED]:
        print(f"skipped: {message}", file=sys.stderr)
    if len(admitted.malformed) > LISTED:
        print(f"skipped: {len(admitted.malformed) - LISTED} more; --key=FILE lists all", file=sys.stderr)
    if given.key:
        report.write_key(given.key, admitted)


def _clients(given: argparse.Namespace) -> dict[str, ChatClient]:
    """Returns clients for the writer and the verifier, or none if no endpoint is given."""
    if not given.endpoint:
        if given.model or given.verifier_endpoint or given.verifier_model:
            raise ConfigError("--model, --verifier_model and --verifier_endpoint need --endpoint")
        return {}
    if not given.model or not given.verifier_model:
        raise ConfigError("--endpoint needs --model, which words the questions, and --verifier_model, which answers them")
    options = request_options("--request", given.request, {"seed": given.seed, **REQUEST})
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


def _kinds(given: argparse.Namespace) -> tuple[Kind, ...]:
    kinds = tuple(given.kinds.split(","))
    allowed = TOPICS if given.endpoint else QUESTIONS
    if unknown := [kind for kind in kinds if kind not in allowed]:
        expected = f"{', '.join(allowed)}{' (with --endpoint)' if given.endpoint else ''}"
        raise ConfigError(f"--kinds: got {', '.join(unknown)}, expected some of {expected}")
    return kinds


def _writer(clients: dict[str, ChatClient], detections: list[Detection], seed: int) -> Writer:
    if clients:
        return AskedWriter(**clients)
    return TemplateWriter(sorted({name for detection in detections for name in detection.boxes}), seed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.curate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--format", choices=("coco", "voc", "yolo", "masks"), required=True, help="annotation format")
    add("--annotations", type=Path, required=True, help="COCO file, or folder of XML, text or PNG files")
    add("--images", type=Path, required=True, help="folder of the images")
    add("--classes", type=Path, help="class names for yolo and masks: one name per line, or YAML with `names`")
    add("--output", type=Path, required=True, help="output directory, which names no file")
    traces = "make traces whose every object has a mask (traces.jsonl), in place of questions with boxes; for masks"
    add("--traces", action="store_true", help=traces)
    kinds = f"kinds of questions, of {', '.join(QUESTIONS)}; the last two only without --endpoint (default: %(default)s)"
    add("--kinds", default=",".join(KINDS), help=kinds)
    boxes = "unit of the boxes: pixels, shares of the sides from 0 to 1, or thousandths of them (default: the format's)"
    add("--boxes", choices=UNITS, default="", help=boxes)
    key = "JSON file to write the images' sources and all malformed records to, outside --output (default: none)"
    add("--key", type=Path, help=key)
    add("--seed", type=int, default=0, help="seed of all random choices, also sent to the endpoints (default: 0)")
    add("--count", type=int, default=0, help="maximum number of rows (default: 0, unlimited)")
    add("--interactive", type=float, default=1 / 17, help="share of the images whose rows get a demonstration (default: 1/17)")
    add("--endpoint", default="", help="URL of the endpoint, such as http://127.0.0.1:8000/v1 (default: none, use templates)")
    add("--model", default="", help="model that words questions and thoughts (required with --endpoint)")
    add("--key_variable", default="OPENAI_API_KEY", help="environment variable with the endpoint's key (default: %(default)s)")
    add("--verifier_endpoint", default="", help="URL of the verifier (default: --endpoint, with its key)")
    add("--verifier_model", default="", help="model that checks questions by answering them (required with --endpoint)")
    key = "environment variable with the key of --verifier_endpoint (default: %(default)s)"
    add("--verifier_key_variable", default="VERIFIER_API_KEY", help=key)
    request = f"request fields, as a JSON object merged into the seed and {json.dumps(REQUEST)}; null leaves a field out"
    add("--request", default="{}", help=request)
    add("--concurrency", type=int, default=8, help="number of concurrent requests and of image reads (default: 8)")
    add("--timeout", type=float, default=120.0, help="seconds to wait for an endpoint (default: 120)")
    add("--retries", type=int, default=5, help="number of retries of a failed request (default: 5)")
    return parser


if __name__ == "__main__":
    main()
