"""TFRecord files of `tf.train.Example`, read without TensorFlow. Checksums are checked."""

import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from vitar_jax.errors import DataError

Features = Mapping[str, list[Any]]  # lists of bytes, int or float, by the feature's name

_HEADER = struct.Struct("<QI")  # the record's length, and the masked checksum of these 8 bytes
_CHECKSUM = struct.Struct("<I")

# The wire format of tf.train.Example. A map is a list of keys and values.
_SCHEMA = """
name: "example.proto" package: "records" syntax: "proto3"
message_type { name: "Bytes" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "Floats" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Ints" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type {
  name: "Feature"
  field { name: "bytes_list" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".records.Bytes" oneof_index: 0 }
  field { name: "float_list" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".records.Floats" oneof_index: 0 }
  field { name: "int64_list" number: 3 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".records.Ints" oneof_index: 0 }
  oneof_decl { name: "kind" }
}
message_type {
  name: "Named"
  field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
  field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".records.Feature" }
}
message_type {
  name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".records.Named" }
}
message_type {
  name: "Example"
  field { name: "features" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE type_name: ".records.Features" }
}
"""


def read_examples(path: Path) -> Iterator[tuple[str, Features | DataError]]:
    """Yields the place and the features of each record, or the error of a damaged one.

    After a damaged record, the file is read on from the next one, unless the length of the damaged one is unknown.

    Raises:
      DataError: If the file cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    with file:
        size, number = path.stat().st_size, 0
        while (start := file.tell()) < size:
            where = f"{path}, record {number}"
            try:
                length = _length(file.read(_HEADER.size), where)
                if start + _HEADER.size + length + _CHECKSUM.size > size:
                    raise DataError(f"{where}: is cut off: {length} bytes are announced")
            except DataError as error:
                yield where, error
                return
            yield where, _example(file, length, where)
            number += 1


def _length(header: bytes, where: str) -> int:
    if len(header) < _HEADER.size:
        raise DataError(f"{where}: is cut off within its header")
    length, checksum = _HEADER.unpack(header)
    if checksum != _masked(header[:8]):
        raise DataError(f"{where}: the checksum of its length is wrong; this is no TFRecord file, or damaged from here on")
    return length


def _example(file: BinaryIO, length: int, where: str) -> Features | DataError:
    content = file.read(length)
    (checksum,) = _CHECKSUM.unpack(file.read(_CHECKSUM.size))
    if checksum != _masked(content):
        return DataError(f"{where}: its checksum is wrong")
    try:
        example = _message().FromString(content)
    except DecodeError:
        return DataError(f"{where}: is no tf.train.Example")
    return {named.key: _values(named.value) for named in example.features.feature}


def _values(feature: Any) -> list[Any]:
    kind = feature.WhichOneof("kind")
    return list(getattr(feature, kind).value) if kind else []


def _masked(content: bytes) -> int:
    """Returns the checksum of a content as TFRecord files store it."""
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


@cache
def _message() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("records.Example"))
