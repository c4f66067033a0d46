"""Reads what XLA compiled: what moves between devices in a step, and which buffers are large.

A scanned body stands once in a program and runs many times; everything here counts it as often as it runs.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}  # else 4
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
NO_BUFFER = ("parameter", "get-tuple-element", "bitcast", "constant", "tuple", "while", "conditional", "call")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\([^=]*?\)|\S+) ([\w\-]+)\((.*)")
_ARRAY = re.compile(r"\b(pred|[sufbc]\w*?\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|\w+_computations?)=(?:\{([^}]*)\}|%?([\w.\-]+))")
_TRIPS = re.compile(r'known_trip_count"?\s*:\s*\{"n":"(\d+)"')
_GROUP_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")  # mesh['a'=4,'b'=2] {'a'}
_GROUP_SHAPE = re.compile(r"replica_groups=\[\d+,(\d+)\]")  # [groups, devices of one]<=[...]
_GROUP_LIST = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_COMMENT = re.compile(r"/\*.*?\*/")
_ORIGIN = re.compile(r'op_name="([^"]*)"')


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      kind: 'all-gather', 'fusion', 'while', ...
      arrays: what it returns, [(dtype, '2,4096,128')].
      called: computations it runs; a loop's condition is the first.
      trips: how often a loop runs, where the line says so.
      value: of an integer constant.
      origin: where in the model it comes from.
      group: devices that a collective is among.
      channel: of a collective; one that is done in steps stands several times with the same.
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
    """Bytes that a compiled program takes on a device: {kind: bytes}; what it is given up and reuses counts once."""
    found = compiled.memory_analysis()
    return {
        "arguments": found.argument_size_in_bytes,
        "results": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
    }


def read(text):
    """The text of a compiled program, `compiled.as_text()` -> {computation: [Instruction]} and the entry's name."""
    computations, entry, current = {}, None, None
    everyone = re.search(r"num_partitions=(\d+)", text[:100_000])
    for line in _COMMENT.sub("", text).splitlines():
        if found := _COMPUTATION.match(line):
            current = computations[found[2]] = []
            entry = found[2] if found[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            _, shape, kind, rest = found.groups()
            called = [n.strip().lstrip("%") for pair in _CALLED.findall(rest) for n in "".join(pair).split(",")]
            trips, origin, value = _TRIPS.search(rest), _ORIGIN.search(rest), re.match(r"(\d+)\)", rest)
            value = int(value[1]) if kind == "constant" and value else None
            trips, origin = trips and int(trips[1]), origin[1] if origin else ""
            channel = _CHANNEL.search(rest)
            channel = channel and int(channel[1])
            arrays = _ARRAY.findall(shape)
            current.append(Instruction(kind, arrays, called, trips, value, origin, _group(rest, everyone), channel))
    return computations, entry


def _group(rest, everyone):
    """How many devices a collective is among, in any of the ways that a line says it; without a word, all of them."""
    if found := _GROUP_MESH.search(rest):
        sizes = dict(axis.split("=") for axis in found[1].split(","))
        return math.prod(int(sizes[axis]) for axis in found[2].split(","))
    if found := _GROUP_SHAPE.search(rest):
        return int(found[1])
    found = _GROUP_LIST.search(rest)
    return found[1].count(",") + 1 if found else int(everyone[1]) if everyone else 1


def _times(line, computations):
    """How often a line runs what it calls: a scan counts up to the constant in its condition."""
    if line.kind != "while":
        return 1
    bounds = [inner.value for inner in computations.get(line.called[0], ()) if inner.value is not None]
    return line.trips or max(bounds, default=1)


def collectives(text):
    """Bytes that each device gets from others in one run, {kind: bytes}, up to a factor of (n - 1) / n of n devices.

    A gather counts what it returns, a reduce-scatter what goes into it, an all-reduce its array twice, since it is both.
    TPUs fuse an all-reduce with the slice behind it, 'all-reduce-scatter': a reduce-scatter; and they do a gather in
    steps, fused with products: it is counted once. Both branches of a condition are counted.
    """
    computations, entry = read(text)
    total = defaultdict(int)

    def walk(name, times, done):
        for line in computations.get(name, ()):
            kind = line.kind.removesuffix("-start")
            if kind in COLLECTIVES and (line.channel is None or line.channel not in done):
                scattered = kind == "all-reduce" and name.startswith("all-reduce-scatter")
                total["reduce-scatter" if scattered else kind] += times * _moved(line, kind, scattered=scattered)
                done.add(line.channel)
            for inner in line.called if kind not in ("all-reduce", "reduce-scatter") else ():
                walk(inner, times * _times(line, computations), set() if line.kind in ("while", "call") else done)

    walk(entry, 1, set())
    return dict(total)


def _moved(line, kind, *, scattered):
    arrays = line.arrays
    if line.kind in ("all-gather-start", "reduce-scatter-start", "collective-permute-start"):  # in, out, counters
        arrays = [array for array in arrays if array[1]]
        arrays = arrays[len(arrays) // 2 :]
    factor = line.group if kind == "reduce-scatter" else 2 if kind == "all-reduce" and not scattered else 1
    return factor * sum(map(_size, arrays))


def largest(text, *, count=10):
    """The largest arrays that a program makes: [(bytes, shape, where in the model it comes from)], each once."""
    computations, entry = read(text)
    found, seen = {}, set()

    def walk(name):
        if name in seen:
            return
        seen.add(name)
        for line in computations.get(name, ()):
            if line.kind not in NO_BUFFER:
                for array in line.arrays:
                    found.setdefault((f"{array[0]}[{array[1]}]", line.origin), _size(array))
            for inner in line.called if line.kind in ("while", "conditional", "call") else ():
                walk(inner)

    walk(entry)
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return [(size, shape, origin) for (shape, origin), size in ordered[:count]]


def _size(array):
    dtype, dims = array
    return BYTES.get(dtype, 4) * math.prod(int(d) for d in dims.split(",") if d)
