"""TFRecord files, written by the code of TensorBoard and tensorflow-datasets."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from tensorboard.summary.writer.record_writer import RecordWriter
from tensorflow_datasets.proto.tf_example_generated_pb2 import Example
from tensorflow_datasets.proto.tf_feature_generated_pb2 import BytesList, Feature, Features, FloatList, Int64List


def write_records(path: Path, records: Iterable[bytes]) -> bytes:
    """Writes records to a file and returns its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for record in records:
            writer.write(record)
    return path.read_bytes()


def write_examples(path: Path, examples: Iterable[Mapping[str, list[bytes] | list[int] | list[float]]]) -> bytes:
    """Writes examples to a file and returns its content."""
    every = ({name: _feature(values) for name, values in example.items()} for example in examples)
    return write_records(path, (Example(features=Features(feature=features)).SerializeToString() for features in every))


def _feature(values: list[bytes] | list[int] | list[float]) -> Feature:
    if any(isinstance(value, bytes) for value in values):
        return Feature(bytes_list=BytesList(value=values))
    if any(isinstance(value, float) for value in values):
        return Feature(float_list=FloatList(value=values))
    return Feature(int64_list=Int64List(value=values))
