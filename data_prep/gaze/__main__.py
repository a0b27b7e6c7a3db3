"""Makes the dialogue base of MedEyes: an expert's searches of the images of a data set.

    python -m data_prep.gaze --set=slake --data_dir=DATA --split=train --language=en --expert=annotations --output=runs/traces

The expert is `annotations` (the boxes and answers of the samples, with errors at stated rates), `endpoint` (a server that
speaks chat completions), or `FILE.py:NAME`, a function that takes a sample and returns an `Expert` of
`data_prep/gaze/regions.py`. See docs/medeyes.md. The output directory gets

    traces.jsonl    the searches, for `experts=dict(traces=...)` of a recipe and for the data set `data_prep.gaze:source`
    answers.jsonl   the expert's answers, under a hash of image, question and box; with --offline, nothing else is asked
    settings.json, report.json, sheet/index.html

You can stop it at any time. Rerunning the command keeps all answers and tries again what failed. The same seed gives the same
bytes.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

from PIL import Image
from tqdm import tqdm

from data_prep import built
from data_prep.gaze.annotated import Annotated, Rates
from data_prep.gaze.answers import Answers
from data_prep.gaze.asked import REQUEST, AskedExpert
from data_prep.gaze.navigator import Navigator, Rules
from data_prep.gaze.regions import Expert
from data_prep.gaze.report import Report, table
from data_prep.gaze.sampler import Nucleus, Sampler
from data_prep.gaze.search import Settings, searches
from vitar_jax.data.sources import Source, SourceConfig, load_source
from vitar_jax.data.traces import JSONL, Trace
from vitar_jax.episodes.sample import Sample
from vitar_jax.errors import ConfigError, DataError, EndpointError, ImageError
from vitar_jax.processing.files import open_image
from vitar_jax.runtime.crash_safe import atomic_replace
from vitar_jax.runtime.endpoint import ChatClient, request_options
from vitar_jax.runtime.prefetch import prefetch
from vitar_jax.runtime.registry import Registry, is_address
from vitar_jax.runtime.user_errors import one_line_errors

STOP_AFTER = 50  # consecutive questions that fail at an endpoint, which end the run

Search = Callable[[Sample, Image.Image], tuple[Trace, ...]]
Searched = tuple[Sample, Image.Image, tuple[Trace, ...]]


@one_line_errors(paths=True)
def main(argv: list[str] | None = None) -> None:
    """Searches the images of a data set with the settings of the command line."""
    gaze(_parser().parse_args(argv))


def gaze(given: argparse.Namespace) -> None:
    """Searches the images of a data set, and writes the traces and a report.

    Raises:
      VitarError: If a flag, the data set, an answer or an endpoint is invalid.
    """
    if given.concurrency < 1:
        raise ConfigError(f"--concurrency: got {given.concurrency}, expected at least 1")
    settings = _settings(given)
    source = _source(given)
    report = Report(given.output / "sheet")
    with contextlib.ExitStack() as stack:
        client = _client(given)
        if client:
            stack.callback(client.close)
        expert_of = _expert(given, client)
        answers = Answers(given.output / "answers.jsonl", name=Path(given.expert).name, offline=given.offline)
        stack.callback(answers.close)

        def search(sample: Sample, image: Image.Image) -> tuple[Trace, ...]:
            expert = expert_of(sample)
            if not isinstance(expert, Expert):
                raise ConfigError(f"--expert={given.expert}: returned {type(expert).__name__}, expected an {Expert.__name__}")
            return searches(sample, expert, settings, given.seed, answers=answers, image=image)

        with atomic_replace(given.output / JSONL) as partial, partial.open("w", encoding="utf-8") as file:
            for sample, image, traces in _searched(given, source, search, report):
                report.add(sample, image, traces)
                file.writelines(json.dumps(trace.to_json()) + "\n" for trace in traces)
    _write_json(given.output / "settings.json", _recorded(given, source))
    counted = report.counts()
    _write_json(given.output / "report.json", counted)
    print(table(counted | ({"requests": dict(sorted(client.counts.items()))} if client else {})))
    if report.looks.keys() == {0}:
        print("warning: no search looks at a region; the expert found none, or the samples have no boxes", file=sys.stderr)
    for reason in client.reasons.values() if client else ():
        print(f"endpoint: {reason}", file=sys.stderr)
    print(f"traces: {given.output / JSONL}")
    print(f"some to look at: {report.write_sheet()}")


def _searched(given: argparse.Namespace, source: Source, search: Search, report: Report) -> Iterator[Searched]:
    """Yields the searches of each question in order. Counts the questions that have none."""

    def attempt(number: int) -> Searched | str | EndpointError:
        try:
            sample = source[number]
            if not sample.images:
                return "no image"
            image = open_image(sample.images[0])
            return sample, image, search(sample, image)
        except ImageError as error:
            print(f"skipped: {error}", file=sys.stderr)
            return "image"
        except EndpointError as error:
            return error

    seen: set[str] = set()
    failures = 0
    count = min(len(source), given.count or len(source))
    with ThreadPoolExecutor(given.concurrency) as pool, tqdm(range(count), "questions", unit="", dynamic_ncols=True) as bar:
        for one in prefetch(pool, attempt, bar, 2 * given.concurrency):
            failures = failures + 1 if isinstance(one, EndpointError) else 0
            if isinstance(one, EndpointError):
                report.failed[one.kind] += 1
                if failures == STOP_AFTER:
                    raise EndpointError(one.kind, f"{failures} failures in a row, the last: {one}; finished answers are kept")
            elif isinstance(one, str):
                report.skipped[one] += 1
            elif one[0].sample_id in seen:
                raise DataError(f"--set={given.set}: sample {one[0].sample_id!r} occurs twice; traces are found by this id")
            else:
                seen.add(one[0].sample_id)
                yield one
    if not seen:
        lost = "; ".join(f"{count:,} {what}" for what, count in (*report.skipped.items(), *report.failed.items()))
        raise DataError(f"--set={given.set}: no question was searched ({lost or 'the set is empty'})")


def _settings(given: argparse.Namespace) -> Settings:
    for name, low in (("searches", 1), ("most_gazes", 1), ("temperature", 0), ("count", 0)):
        if not getattr(given, name) >= low:
            raise ConfigError(f"--{name}: got {getattr(given, name)}, expected at least {low}")
    for name in ("mass", "threshold", "closer"):
        if not 0 < getattr(given, name) <= 1:
            raise ConfigError(f"--{name}: got {getattr(given, name)}, expected more than 0 and at most 1")
    sampler = Sampler(given.sampler, given.nucleus, given.mass, given.temperature)
    rules = Rules(
        navigator=given.navigator,
        sampler=sampler,
        min_gain=given.min_gain,
        threshold=given.threshold,
        at_threshold=given.at_threshold,
        most_gazes=given.most_gazes,
        closer=given.closer,
    )
    return Settings(rules, given.searches)


def _source(given: argparse.Namespace) -> Source:
    if given.set.endswith((".csv", ".jsonl")):
        return load_source(SourceConfig("questions", given.split, {"file": given.set}))
    try:
        options = json.loads(given.options)
    except ValueError as error:
        raise ConfigError(f"--options: got {given.options!r}, expected a JSON object ({error})") from error
    if is_address(given.set):
        return load_source(SourceConfig(given.set, given.split, options))
    if given.data_dir is None:
        raise ConfigError(f"--set={given.set} is a built set and needs --data_dir=DIR, where it has been built")
    return built.source(given.split, set=given.set, data_dir=str(given.data_dir), language=given.language)


def _client(given: argparse.Namespace) -> ChatClient | None:
    if given.expert != "endpoint":
        if given.endpoint or given.model:
            raise ConfigError("--endpoint and --model need --expert=endpoint")
        return None
    if not given.model or not (given.endpoint or given.offline):
        raise ConfigError("--expert=endpoint needs --model=NAME and --endpoint=URL; with --offline only --model")
    if given.offline:
        return None
    return ChatClient(
        given.endpoint,
        given.model,
        given.output / "replies.jsonl",
        request_options("--request", given.request, REQUEST),
        key=os.environ.get(given.key_variable, ""),
        concurrency=given.concurrency,
        timeout=given.timeout,
        retries=given.retries,
    )


def _expert(given: argparse.Namespace, client: ChatClient | None) -> Callable[[Sample], Expert]:
    try:
        rates = Rates(given.misses, given.false_regions, given.wrong_answers)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error
    request = request_options("--request", given.request, REQUEST)
    experts: Registry[Callable[[Sample], Expert]] = Registry("expert")
    experts["annotations"] = lambda sample: Annotated(sample, rates, given.seed)
    experts["endpoint"] = lambda _: AskedExpert(client, given.model, request)
    return experts.find(given.expert)


def _recorded(given: argparse.Namespace, source: Source) -> dict[str, Any]:
    """Returns the settings that the traces depend on."""
    elsewhere = ("data_dir", "output", "endpoint", "key_variable", "concurrency", "timeout", "retries", "offline")
    recorded = {name: value for name, value in vars(given).items() if name not in elsewhere}
    return recorded | ({"version": source.version} if isinstance(source, built.Built) else {})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_replace(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.gaze", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--set", required=True, help="built set, file of questions (.csv or .jsonl), or package.module:name of a data set")
    add("--data_dir", type=Path, help="folder of built sets")
    add("--split", default="train", help="split of the set (default: train)")
    add("--language", default="", help="language of the split, for sets with several (default: none)")
    add("--options", default="{}", help="further arguments of package.module:name, as a JSON object (default: none)")
    add("--count", type=int, default=0, help="maximum number of questions (default: 0, unlimited)")
    add("--expert", required=True, help="annotations, endpoint, or FILE.py:NAME")
    add("--output", type=Path, required=True, help="output directory")
    add("--offline", action="store_true", help="take only kept answers, and ask the expert nothing")
    add("--seed", type=int, default=0, help="seed of the searches and of the errors of annotations (default: 0)")
    add("--concurrency", type=int, default=8, help="number of questions searched at the same time (default: 8)")

    rules, sampler = Rules(), Sampler()
    searching = parser.add_argument_group("searches").add_argument
    searching("--searches", type=int, default=Settings().searches, help="searches per question (default: %(default)s)")
    searching("--most_gazes", type=int, default=rules.most_gazes, help="maximum number of looks (default: %(default)s)")
    navigator = "grn scans and drills; scan and drill do one of them alone; random drills into random boxes (default: grn)"
    searching("--navigator", choices=get_args(Navigator), default=rules.navigator, help=navigator)
    gain = "gain in confidence, relative to that before, from which a region is drilled further (default: %(default)s)"
    searching("--min_gain", type=float, default=rules.min_gain, help=gain)
    threshold = "confidence of the drilled region above which a search ends (default: %(default)s)"
    searching("--threshold", type=float, default=rules.threshold, help=threshold)
    searching("--at_threshold", action="store_true", help="end at the threshold itself too, as the published code does")
    closer = "sides of a further drill, relative to those of the last (default: %(default)s)"
    searching("--closer", type=float, default=rules.closer, help=closer)
    drawing = "cvs draws the next region from the nucleus; first takes the most confident one (default: cvs)"
    searching("--sampler", choices=("cvs", "first"), default=sampler.kind, help=drawing)
    nucleus = "keep regions up to --mass, as published (cumulative), or the fewest that reach it (default: %(default)s)"
    searching("--nucleus", choices=get_args(Nucleus), default=sampler.nucleus, help=nucleus)
    searching("--mass", type=float, default=sampler.mass, help="probability of the nucleus (default: %(default)s)")
    temperature = "temperature of the softmax of the confidences; 0 is --sampler=first (default: %(default)s)"
    searching("--temperature", type=float, default=sampler.temperature, help=temperature)

    errs = parser.add_argument_group("--expert=annotations").add_argument
    errs("--misses", type=float, default=0.0, help="share of the boxes that a scan does not find (default: 0)")
    errs("--false_regions", type=float, default=0.0, help="false regions that a scan finds per box (default: 0)")
    errs("--wrong_answers", type=float, default=0.0, help="share of wrong answers although the box was found (default: 0)")

    asks = parser.add_argument_group("--expert=endpoint").add_argument
    asks("--endpoint", default="", help="URL of the endpoint, such as http://127.0.0.1:8000/v1")
    asks("--model", default="", help="name of the model")
    asks("--key_variable", default="OPENAI_API_KEY", help="environment variable with the endpoint's key (default: %(default)s)")
    request = f"request fields, as a JSON object merged into {json.dumps(REQUEST)}; null leaves a field out"
    asks("--request", default="{}", help=request)
    asks("--timeout", type=float, default=120.0, help="seconds to wait for the endpoint (default: 120)")
    asks("--retries", type=int, default=5, help="number of retries of a failed request (default: 5)")
    return parser


if __name__ == "__main__":
    main()
