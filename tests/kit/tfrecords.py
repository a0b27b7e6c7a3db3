"""TFRecord files as TensorFlow writes them."""

from collections.abc import Iterable, Mapping
from pathlib import Path


def write_examples(path: Path, examples: Iterable[Mapping[str, list[bytes] | list[int] | list[float]]]) -> bytes:
    """Writes examples to a file and returns its content."""
    import tensorflow as tf

    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            features = {name: _feature(values) for name, values in example.items()}
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return path.read_bytes()


def _feature(values: list[bytes] | list[int] | list[float]):
    import tensorflow as tf

    train = tf.train
    if any(isinstance(value, bytes) for value in values):
        return train.Feature(bytes_list=train.BytesList(value=values))
    if any(isinstance(value, float) for value in values):
        return train.Feature(float_list=train.FloatList(value=values))
    return train.Feature(int64_list=train.Int64List(value=values))
