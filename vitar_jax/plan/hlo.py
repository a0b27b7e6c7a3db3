"""Reads compiled programs (HLO text): collectives with their bytes, memory, and the largest arrays."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\]")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_VALUE = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = ([a-z]\w*\[[\d,]*\])\S* ([\w\-]+)\(")
_NAME = re.compile(r'op_name="([^"]*)"')
_LOOPS = re.compile(r"\bbody=%?([\w.\-]+)")
_NO_VALUES = ("get-tuple-element", "bitcast", "constant", "while", "conditional")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_TRIPS = re.compile(r'known_trip_count[":{ ]+n[": ]+(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
    """The collectives of one kind in one run of a program, on one device.

    Attributes:
      count: Number of executions. A collective in a loop counts once per iteration.
      bytes: Total size of the larger side: the output of a gather, the input of a reduction.
    """

    kind: str
    count: int
    bytes: int


def collectives(text: str) -> list[Collective]:
    """Returns the collectives of a compiled program (`compiled.as_text()`) by kind, the most bytes first."""
    kinds = collections.defaultdict(list)
    for one in each_collective(text):
        kinds[one.kind].append(one)
    totals = [Collective(kind, sum(c.count for c in all_), sum(c.bytes for c in all_)) for kind, all_ in kinds.items()]
    return sorted(totals, key=lambda c: -c.bytes)


def each_collective(text: str) -> list[Collective]:
    """Returns each collective operation of a program separately, with all its executions.

    Loops count with their maximum number of iterations; decode counts as if no slot stopped early.
    """
    entry, bodies = _computations(text)
    found: dict[str, Collective] = {}
    _gather(entry, bodies, 1, found)
    return list(found.values())


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    entry, bodies, current = "", {}, ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = header[2]
            bodies[current] = []
            entry = current if header[1] else entry
        elif line.rstrip() == "}":  # lines of embedded kernels may start with "}"
            current = ""
        elif current:
            bodies[current].append(line)
    return entry, bodies


def _gather(name: str, bodies: dict[str, list[str]], times: int, found: dict[str, Collective]) -> None:
    """Adds the collectives of one computation, and of the computations that it calls, to `found` by channel.

    The TPU compiler splits one collective into several fusions (start, overlapped products, done). Each fusion lists the
    collective, always with the same channel.
    """
    for number, line in enumerate(bodies.get(name, ())):
        if operation := _OPERATION.search(line):
            size = max(_sizes(operation[1]), default=0.0)
            if operation[2] == "reduce-scatter":
                size *= _group_size(line)
            channel = _CHANNEL.search(line)
            found[channel[1] if channel else f"{name} {number}"] = Collective(operation[2], times, times * int(size))
            continue
        trips = _trips(line, bodies) if " while(" in line else 1
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip().lstrip("%") for branch in branches.split(",")]
        for callee in called:
            _gather(callee, bodies, times * trips, found)


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """Returns the trip count of a loop: the compiler's annotation, else the constant that its condition compares with."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    if condition is None:
        return 1
    text = "\n".join(bodies[condition[1]])
    fused = ["\n".join(bodies.get(name, ())) for name in _CALLED.findall(text)]
    limits = re.findall(r"= s32\[\]\S* constant\((\d+)\)", "\n".join([text, *fused]))
    return int(limits[0]) if len(limits) == 1 else 1


def _sizes(result: str) -> Iterator[float]:
    for kind, shape in _SHAPE.findall(result):
        if kind in _BYTES:
            size = _BYTES[kind]
            for side in filter(None, shape.split(",")):
                size *= int(side)
            yield size


def _group_size(line: str) -> int:
    """Returns the number of devices per replica group: two in `{{0,1},{2,3}}`, `[2,2]<=[4]` and `mesh['a'=2,'b'=4] {'a'}`."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return 1


@dataclasses.dataclass(frozen=True)
class Value:
    """An array of a program on one device. `name` is the argument's name, or the path of the operation that computes it."""

    bytes: int
    shape: str
    name: str


def largest_values(text: str, count: int) -> list[Value]:
    """Returns the largest arguments and results of a program, including its loops. Keeps one array per shape and name."""
    entry, bodies = _computations(text)
    values: dict[tuple[str, str], Value] = {}
    for body in (entry, *_loops(entry, bodies)):
        for line in bodies[body]:
            made = _VALUE.match(line)
            if made is None or made[2] in _NO_VALUES or (made[2] == "parameter" and body != entry):
                continue
            named = _NAME.search(line)
            value = Value(int(max(_sizes(made[1]), default=0)), made[1], named[1] if named else made[2])
            values[value.shape, value.name] = value
    return sorted(values.values(), key=lambda value: -value.bytes)[:count]


def _loops(name: str, bodies: dict[str, list[str]]) -> Iterator[str]:
    for callee in _LOOPS.findall("\n".join(bodies[name])):
        yield callee
        yield from _loops(callee, bodies)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a program on one device (bytes).

    Attributes:
      arguments, outputs: Size of inputs and results; `aliased` bytes of them share memory, because they are donated.
      temporaries: Peak size of intermediate arrays.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int

    @classmethod
    def of(cls, compiled: Any) -> "Memory":
        """Reads `compiled.memory_analysis()`."""
        analysis = compiled.memory_analysis()
        return cls(
            arguments=analysis.argument_size_in_bytes,
            outputs=analysis.output_size_in_bytes,
            aliased=analysis.alias_size_in_bytes,
            temporaries=analysis.temp_size_in_bytes,
        )

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries
