"""Converts the config.json of old run directories to today's keys and names, as docs/moved_keys.md lists them."""

from collections.abc import Mapping
from typing import Any

_ROLLOUT = {"extend_lengths": "prefill_lengths", "extend_rows": "prefill_rows"}
# These names are only compared with the names of a recipe. This module does not import the objects.
_SOURCES = {
    "built": "data_prep.built:source",
    "phantom": "data_prep.phantom:source",
    "vqa_rad": "data_prep.sets.vqa_rad:source",
    "data_prep.vqa_rad:source": "data_prep.sets.vqa_rad:source",
}
_TOKENIZERS = {"data_prep.phantom_tokenizer": "data_prep.phantom.tokenizer:save"}
# Keys that every stage had and that are now keys of its objective.
_GRPO = ("rewards", "group_size", "temperature", "top_p", "alarms")
_SFT = ("rewards", "pack", "too_long")


def migrate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of an old run with today's keys and names. Leaves unknown keys unchanged."""
    changed = {
        "rollout": lambda rollout: {_ROLLOUT.get(key, key): value for key, value in rollout.items()},
        "processor": lambda processor: _renamed(processor, "tokenizer", _TOKENIZERS),
        "evaluation": _source,
        "benchmarks": lambda benchmarks: {name: _benchmark(value) for name, value in benchmarks.items()},
        "stages": lambda stages: {name: _stage(stage) for name, stage in stages.items()},
    }
    return {key: changed[key](value) if key in changed else value for key, value in config.items()}


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stage with an `objective`, which replaces `grpo` (null means SFT) and takes its keys from the stage."""
    stage = {**stage, "sources": {name: _source(source) for name, source in stage["sources"].items()}}
    if "objective" in stage:
        return stage
    grpo = stage.pop("grpo", None)
    moved = {key: stage.pop(key) for key in {*_GRPO, *_SFT} if key in stage}
    name, own = ("sft", _SFT) if grpo is None else ("grpo", _GRPO)
    objective = {"name": name, **{key: moved[key] for key in own if key in moved}, **(grpo or {})}
    return {**stage, "objective": objective}


def _benchmark(benchmark: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a benchmark with a `source`. In older configs, the benchmark itself is the source."""
    if "source" in benchmark:
        return {**benchmark, "source": _source(benchmark["source"])}
    source = {key: value for key, value in benchmark.items() if key != "protocol"}
    return {"source": _source(source), "protocol": benchmark.get("protocol", "")}


def _source(source: Mapping[str, Any]) -> dict[str, Any]:
    return _renamed(source, "name", _SOURCES)


def _renamed(values: Mapping[str, Any], key: str, names: Mapping[str, str]) -> dict[str, Any]:
    return {name: names.get(value, value) if name == key else value for name, value in values.items()}
