"""VRT-Bench: questions whose reasoning and answer name objects, each with a mask (Visual Reasoning Tracer)."""

from collections.abc import Iterator, Mapping

from data_prep.building.records import DataSet, Record
from data_prep.building.vrt_records import VRTRecord, read_records
from data_prep.reading.published import Published
from vitar_jax.episodes.sample import Sample, SegmentedObject
from vitar_jax.errors import DataError

OBJECTS = "objects_info_json"


def read(published: Published) -> Mapping[str, Iterator[Record]]:
    """Returns the records by split."""
    return {"test": read_records(published, OBJECTS, {"json": "vrt_80k"}, _sample)}


def _sample(record: VRTRecord) -> Sample:
    reasoning, answer = (_ids(record, f"human_labeled_{part}_objs") for part in "ra")
    known = record.json(OBJECTS)
    if not isinstance(known, dict):
        raise DataError(f"{record.where}: {OBJECTS}: got {type(known).__name__}, expected an object")
    objects = []
    for name in dict.fromkeys(reasoning + answer):
        found = known.get(name)
        if not isinstance(found, dict) or "mask" not in found:
            raise DataError(f"{record.where}: {OBJECTS}: object {name} has no mask, but is one of the reasoning or the answer")
        mask = record.mask(found["mask"], f"{OBJECTS}: {name}")
        caption = str(found.get("caption", ""))
        objects.append(SegmentedObject(f"obj{name}", mask, caption, name in reasoning, name in answer))
    return Sample(
        sample_id=f"vrt-bench-{record.key}",
        question=record.text("question"),
        images=(),
        answer="",
        metadata={
            "classes": [value.decode(errors="replace").lstrip("#") for value in record.features.get("class_ids", [])],
            "confidence": record.features.get("human_confidence", [None])[0],
        },
        objects=tuple(objects),
    )


def _ids(record: VRTRecord, feature: str) -> list[str]:
    return [str(value) for value in record.features.get(feature, [])]


SET = DataSet(
    name="vrt_bench",
    title="VRT-Bench: questions about pictures of SA-1B whose reasoning and answer are objects with masks",
    url="https://huggingface.co/datasets/HarborYuan/VRT-Eval",
    licence="not stated; the images are under the licence of SA-1B",
    citation="Visual Reasoning Tracer, arXiv:2512.05091",
    layout="*.tfrecord",
    counts={"test": 304},
    hub_files=("*.tfrecord",),
    notes=("The benchmark has no reference answers in words: answers are judged by their masks.",),
    skip_bad=True,  # one damaged record must not stop the build
)
