"""Reads compiled programs: bytes that devices exchange, and large buffers.

The body of a scan is in a program once and runs many times; it is counted as often as it runs.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

# Bytes of an element; 4 for other dtypes.
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}
COLLECTIVES = {
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
}
NO_BUFFER = {
    "parameter",
    "get-tuple-element",
    "bitcast",
    "constant",
    "tuple",
    "while",
    "conditional",
    "call",
}
# These return their inputs, their outputs and counters.
PAIRED = {"all-gather-start", "reduce-scatter-start", "collective-permute-start"}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*)")
_ARRAY = re.compile(r"\b(pred|[sufbc]\w*?\d+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|\w+_computations?)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)
_TRIPS = re.compile(r'known_trip_count"?\s*:\s*\{"n":"(\d+)"')
# mesh['a'=4,'b'=2] {'a'}
_GROUP_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
# [groups, devices per group]<=[...]
_GROUP_SHAPE = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_GROUP_LIST = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_COMMENT = re.compile(r"/\*.*?\*/")
_ORIGIN = re.compile(r'op_name="([^"]*)"')


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      kind: 'all-gather', 'fusion', 'while', ...
      arrays: its results, [(dtype, '2,4096,128')].
      called: names of computations that it calls; the first of a loop is its condition.
      trips: number of iterations of a loop, or None if the line does not state it.
      value: of an integer constant, or None.
      origin: operation of the model that it comes from.
      group: number of devices in a group of a collective.
      channel: of a collective; the parts of one collective have the same channel.
    """

    kind: str
    arrays: list
    called: list
    trips: int | None
    value: int | None
    origin: str
    group: int
    channel: int | None


def memory(compiled):
    """Memory of a compiled program on a device: {kind: bytes}; donated buffers count once."""
    analysis = compiled.memory_analysis()
    return {
        "arguments": analysis.argument_size_in_bytes,
        "results": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
    }


def read(text):
    """Parses the text of a compiled program, `compiled.as_text()`.

    Returns:
      {computation: [Instruction]}, and the name of the entry computation.
    """
    computations, entry, current = {}, None, None
    partitions = re.search(r"num_partitions=(\d+)", text[:100_000])
    num_devices = int(partitions[1]) if partitions else 1
    for line in _COMMENT.sub("", text).splitlines():
        if start := _COMPUTATION.match(line):
            is_entry, name = start.groups()
            current = computations[name] = []
            entry = name if is_entry else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current.append(_instruction(match, num_devices))
    return computations, entry


def _instruction(match, num_devices):
    """The Instruction of a match of _INSTRUCTION."""
    _, shape, kind, rest = match.groups()
    called = [
        name.strip().lstrip("%")
        for names in _CALLED.findall(rest)
        for name in "".join(names).split(",")
    ]
    trips = _TRIPS.search(rest)
    value = re.match(r"(\d+)\)", rest) if kind == "constant" else None
    origin = _ORIGIN.search(rest)
    channel = _CHANNEL.search(rest)
    return Instruction(
        kind=kind,
        arrays=_ARRAY.findall(shape),
        called=called,
        trips=int(trips[1]) if trips else None,
        value=int(value[1]) if value else None,
        origin=origin[1] if origin else "",
        group=_group_size(rest, num_devices),
        channel=int(channel[1]) if channel else None,
    )


def _group_size(rest, num_devices):
    """Devices in a group of a collective, in any of XLA's notations; by default all devices."""
    if match := _GROUP_MESH.search(rest):
        sizes = dict(axis.split("=") for axis in match[1].split(","))
        return math.prod(int(sizes[axis]) for axis in match[2].split(","))
    if match := _GROUP_SHAPE.search(rest):
        return int(match[1])
    if match := _GROUP_LIST.search(rest):
        return match[1].count(",") + 1
    return num_devices


def _iterations(line, computations):
    """How often a line runs what it calls: a scan counts up to the constant in its condition."""
    if line.kind != "while":
        return 1
    condition = computations.get(line.called[0], ())
    bounds = [inner.value for inner in condition if inner.value is not None]
    return line.trips or max(bounds, default=1)


def collectives(text):
    """Bytes that each device receives in one run: {kind: bytes}, up to (n - 1) / n for n devices.

    An all-gather counts its result, a reduce-scatter its input, and an all-reduce its array twice,
    since it does both. On TPU, an all-reduce that is fused with a slice, 'all-reduce-scatter',
    counts as reduce-scatter, and an all-gather in several steps, fused with products, counts once.
    Both branches of a conditional are counted.
    """
    computations, entry = read(text)
    total = defaultdict(int)

    def walk(name, times, counted):
        for line in computations.get(name, ()):
            kind = line.kind.removesuffix("-start")
            if kind in COLLECTIVES and (line.channel is None or line.channel not in counted):
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    total["reduce-scatter"] += times * _result_bytes(line)
                else:
                    total[kind] += times * _received_bytes(line, kind)
                counted.add(line.channel)
            if kind in ("all-reduce", "reduce-scatter"):
                continue  # calls nothing but its addition
            inner_counted = set() if line.kind in ("while", "call") else counted
            for inner in line.called:
                walk(inner, times * _iterations(line, computations), inner_counted)

    walk(entry, 1, set())
    return dict(total)


def _received_bytes(line, kind):
    factors = {"reduce-scatter": line.group, "all-reduce": 2}
    return factors.get(kind, 1) * _result_bytes(line)


def _result_bytes(line):
    """Bytes of what a collective returns."""
    arrays = line.arrays
    if line.kind in PAIRED:
        arrays = [(dtype, dims) for dtype, dims in arrays if dims]  # without the counters
        arrays = arrays[len(arrays) // 2 :]
    return sum(map(_size, arrays))


def largest(text, *, count=10):
    """The largest arrays that a program makes: [(bytes, shape, origin in the model)], each once."""
    computations, entry = read(text)
    sizes = {}
    visited = set()

    def walk(name):
        if name in visited:
            return
        visited.add(name)
        for line in computations.get(name, ()):
            if line.kind not in NO_BUFFER:
                for dtype, dims in line.arrays:
                    sizes.setdefault((f"{dtype}[{dims}]", line.origin), _size((dtype, dims)))
            if line.kind in ("while", "conditional", "call"):
                for inner in line.called:
                    walk(inner)

    walk(entry)
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    return [(size, shape, origin) for (shape, origin), size in ordered[:count]]


def _size(array):
    """Bytes of an array (dtype, '2,4096,128')."""
    dtype, dims = array
    return BYTES.get(dtype, 4) * math.prod(int(d) for d in dims.split(",") if d)
