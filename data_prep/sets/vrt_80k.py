"""VRT-80k: questions with a trace, a reasoning and an answer whose every object has a mask (Visual Reasoning Tracer)."""

from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.building.records import DataSet, Record
from data_prep.building.vrt_records import VRTRecord, read_records
from data_prep.reading.published import Published
from vitar_jax.episodes.object_tags import mentions, renumber, without_tags
from vitar_jax.episodes.sample import Answer, Demonstration, Sample, SegmentedObject
from vitar_jax.errors import DataError


def read(published: Published) -> Mapping[str, Iterator[Record]]:
    """Returns the records by split."""
    return {"train": read_records(published, "json", {"objects_info_json": "vrt_bench"}, _sample)}


def _sample(record: VRTRecord) -> Sample:
    content = record.json("json")
    candidates = _get(content, record, "generated_ver_data", "candidates")
    if not isinstance(candidates, list) or not candidates:
        raise DataError(f"{record.where}: json: candidates: got none, expected a question with its reasoning and answer")
    question, reasoning, answer = (
        _text(candidates[0], key, record) for key in ("question", "reasoning", "answer_caption")
    )
    annotations = _get(content, record, "original_annotation", "objects_anns")
    (shown, caption), names = renumber((reasoning, answer))
    used = set(mentions(reasoning)), set(mentions(answer))
    objects = []
    for old, new in names.items():
        segmentation = _get(annotations, record, f"<{old}>", "segmentation")
        mask = record.mask(segmentation, f"json: <{old}>: segmentation")
        described = str(annotations[f"<{old}>"].get("caption", ""))
        objects.append(SegmentedObject(new, mask, described, old in used[0], old in used[1]))
    return Sample(
        sample_id=f"vrt-80k-{record.key}",
        question=question,
        images=(),
        answer=without_tags(answer),
        demonstration=Demonstration((), Answer(shown, caption)),
        objects=tuple(objects),
    )


def _get(value: Any, record: VRTRecord, *keys: str) -> Any:
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise DataError(f"{record.where}: json: {' / '.join(keys)}: {key} is missing")
        value = value[key]
    return value


def _text(value: Any, key: str, record: VRTRecord) -> str:
    if not isinstance(found := _get(value, record, key), str) or not found.strip():
        raise DataError(f"{record.where}: json: {key}: got {found!r}, expected text")
    return found.strip()


SET = DataSet(
    name="vrt_80k",
    title="VRT-80k: questions about pictures of SA-1B with traces whose every object has a mask",
    url="https://huggingface.co/datasets/HarborYuan/VisualReasoningTracer",
    licence="not stated; the images are under the licence of SA-1B",
    citation="Visual Reasoning Tracer, arXiv:2512.05091",
    layout="*.tfrecord",
    hub_files=("*.tfrecord",),
    notes=("Of each record, the first candidate is used, as in the published training.",),
    skip_bad=True,  # one damaged record must not stop the build
)
