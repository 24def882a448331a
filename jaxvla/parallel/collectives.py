"""Which collectives a compiled program has, over which axes of the mesh, and how many bytes they move.

Read from the text of XLA's optimised program. Loops count as often as they run, where XLA knows it, else once.
Programs that were compiled for simulated devices on a CPU differ from those of an accelerator in two ways, which are
undone here, so that bytes are those of an accelerator:

- this backend computes in float32 what is bfloat16, and moves it so. A collective counts as bfloat16 where its operand
  was widened right before it, or where its reduction is one that XLA promoted.
- it has no reduce-scatter. A sum of which each device takes its slice counts as one; accelerators make one of it.
"""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxvla.errors import ConfigError

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Where the groups of a collective are no axes of the mesh.
OTHER = "other"

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
_BYTES |= {"s64": 8, "u64": 8, "f64": 8, "c64": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.$-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.$-]+) = (.+?) ([a-z][a-z0-9-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_NAMES = re.compile(r"%([\w.$-]+)")
_CALLED = re.compile(
    r"(?:body|calls|to_apply|branch_computations|true_computation|false_computation)=\{?(%[\w.$%, -]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# What moves or rounds values.
_SAME_VALUES = ("bitcast", "convert", "copy", "reshape", "transpose")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of a program of one kind over the same axes.

    Attributes:
        kind: one of `KINDS`.
        axes: of the mesh, or `OTHER`.
        count: how many arrays they take in a step.
        payload: bytes that a device has of them: of what is gathered the whole, of what is summed the summands.
        wire: bytes that a device sends, by ring algorithms.
        local: whether every group lies among devices that follow one another in a domain of fast links.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    payload: float
    wire: float
    local: bool


@dataclasses.dataclass
class _Instruction:
    name: str
    shape: str
    opcode: str
    rest: str
    root: bool

    @property
    def operands(self) -> list[str]:
        return _NAMES.findall(self.rest.split("), ")[0])


Program = dict[str, dict[str, _Instruction]]


def collectives(text: str, mesh: Mapping[str, int], domain: int) -> tuple[Collective, ...]:
    """The collectives of a step.

    Args:
        text: `compiled.as_text()`.
        mesh: the size of each axis, the last one varying fastest along the devices' numbers.
        domain: how many devices in a row are joined by fast links.

    Raises:
        ConfigError: the program runs on another number of devices, or its groups are written in an unknown way.
    """
    program, entry = _parse(text)
    found: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
    runs = _runs(program, entry)
    for name, instructions in program.items():
        for one in instructions.values():
            kind = one.opcode.removesuffix("-start")
            if kind in KINDS and runs[name]:
                groups = _groups(one, math.prod(mesh.values()))
                if groups.shape[1] == 1:
                    continue
                where = _axes(groups, mesh, kind), bool((groups // domain == groups[:, :1] // domain).all())
                for counted_as, size in _parts(one, kind, groups.shape[1], instructions, program):
                    row = found[(counted_as, *where)]
                    row[0] += runs[name]
                    row[1] += runs[name] * size
                    row[2] += runs[name] * size * _share_sent(counted_as, groups.shape[1])
    rows = (
        Collective(kind, axes, int(n), payload, wire, local)
        for (kind, axes, local), (n, payload, wire) in found.items()
    )
    return tuple(sorted(rows, key=lambda row: -row.wire))


def _share_sent(kind: str, size: int) -> float:
    """What a device sends, of its payload, by ring algorithms in a group of that size."""
    return {"all-reduce": 2.0, "collective-permute": size / (size - 1)}.get(kind, 1.0) * (size - 1) / size


def _parse(text: str) -> tuple[Program, str]:
    program: Program = {}
    entry, current = "", {}
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = program.setdefault(start[1], {})
            entry = start[1] if line.startswith("ENTRY") else entry
        elif match := _INSTRUCTION.match(line):
            current[match[2]] = _Instruction(match[2], match[3], match[4], match[5], bool(match[1]))
    return program, entry


def _runs(program: Program, entry: str) -> dict[str, int]:
    """How often a step runs each computation; loops of unknown length count once."""
    callers: dict[str, list[tuple[str, int]]] = collections.defaultdict(list)
    for name, instructions in program.items():
        for one in instructions.values():
            trips = _TRIPS.search(one.rest)
            times = int(trips[1]) if one.opcode == "while" and trips else 1
            for group in _CALLED.findall(one.rest):
                for called in _NAMES.findall(group):
                    callers[called].append((name, times))
    runs: dict[str, int] = {entry: 1}

    def of(name: str) -> int:
        if name not in runs:
            runs[name] = sum(times * of(caller) for caller, times in callers[name])
        return runs[name]

    return {name: of(name) for name in program}


def _parts(
    one: _Instruction, kind: str, group: int, instructions: Mapping[str, _Instruction], program: Program
) -> list[tuple[str, float]]:
    """Kind and payload of each array that a collective takes."""
    arrays = _ARRAY.findall(one.shape)
    sizes = [_BYTES[dtype] * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in arrays]
    operands = one.operands
    if len(sizes) > len(operands):  # of a start, but that of a sum: what it takes comes first, what waits for it last
        sizes = sizes[len(operands) : 2 * len(operands)]
    reduction = re.search(r"to_apply=%([\w.$-]+)", one.rest)
    promoted = bool(reduction) and "promoted" in reduction[1]
    parts = []
    for index, size in enumerate(sizes):
        widened = promoted or (index < len(operands) and _widened(operands[index], instructions, program))
        sliced = kind == "all-reduce" and _is_sliced(one, index, len(sizes), instructions, program)
        size = size * group if kind == "reduce-scatter" else size  # what it gives is a part of what it takes
        narrow = widened and arrays[index % len(arrays)][0] == "f32"
        parts.append(("reduce-scatter" if sliced else kind, size / 2 if narrow else float(size)))
    return parts


def _widened(name: str, instructions: Mapping[str, _Instruction], program: Program) -> bool:
    """Whether a value is float32 that was bfloat16 right before."""
    while name in instructions:
        one = instructions[name]
        if one.opcode == "convert":
            source = instructions.get(one.operands[0])
            return one.shape.startswith("f32") and source is not None and source.shape.startswith("bf16")
        if one.opcode == "fusion":
            instructions = program[_NAMES.search(_CALLED.search(one.rest)[1])[1]]
            name = next(inner.name for inner in instructions.values() if inner.root)
        elif one.opcode in _SAME_VALUES:
            name = one.operands[0]
        else:
            return False
    return False


def _is_sliced(
    one: _Instruction, index: int, count: int, instructions: Mapping[str, _Instruction], program: Program
) -> bool:
    """Whether all that becomes of a sum is a slice of it."""
    names = {one.name}
    if count > 1:
        takers = [i for i in instructions.values() if one.name in i.operands and i.opcode == "get-tuple-element"]
        names = {i.name for i in takers if f"index={index}," in f"{i.rest},"}
    names, users = _users(names, instructions)
    return bool(users) and all(_slices(user, names, program) for user in users)


def _users(names: set[str], instructions: Mapping[str, _Instruction]) -> tuple[set[str], list[_Instruction]]:
    """Who takes one of these values, what only moves or rounds it passed over; and what they take."""
    users = [i for i in instructions.values() if names & set(i.operands)]
    while len(users) == 1 and users[0].opcode in _SAME_VALUES:
        names = {users[0].name}
        users = [i for i in instructions.values() if names & set(i.operands)]
    return names, users


def _slices(user: _Instruction, names: set[str], program: Program) -> bool:
    if user.opcode == "dynamic-slice":
        return True
    if user.opcode != "fusion":
        return False
    inner = program[_NAMES.search(_CALLED.search(user.rest)[1])[1]]
    places = {place for place, operand in enumerate(user.operands) if operand in names}
    taken = {i.name for i in inner.values() if i.opcode == "parameter" and int(i.rest.split(")")[0]) in places}
    _, users = _users(taken, inner)
    return bool(users) and all(i.opcode == "dynamic-slice" for i in users)


def _groups(one: _Instruction, count: int) -> np.ndarray:
    """Numbers of the devices of each group, [groups, devices of one]."""
    rest = one.rest
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", rest):
        ends = [int(number) for number in re.findall(r"\d+", pairs[1])]
        return np.array(ends).reshape(-1, 2)
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", rest):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        chosen = [axis.strip("'") for axis in mesh[3].split(",")]
        if set(chosen) <= set(sizes):
            devices = _iota(mesh[2]) if mesh[2] else np.arange(count)
            grid = devices.reshape(list(sizes.values()))
            order = sorted(range(len(sizes)), key=lambda i: list(sizes)[i] in chosen)
            return grid.transpose(order).reshape(-1, math.prod(sizes[axis] for axis in chosen))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\](<=\S+)", rest):
        return _iota(f"[{count}]{iota[3]}").reshape(int(iota[1]), int(iota[2]))
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    if "replica_groups={}" in rest:
        return np.arange(count)[None]
    raise ConfigError(f"the groups of {one.name} are written in a way that is not known: {rest[:200]}")


def _iota(text: str) -> np.ndarray:
    """Device numbers in the order that XLA writes as `[8,32]<=[32,8]T(1,0)` or `[32,8]T(1,0)`."""
    shape, order = re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?,?$", text).groups()
    numbers = np.arange(math.prod(map(int, shape.split(",")))).reshape([int(n) for n in shape.split(",")])
    return (numbers.transpose([int(n) for n in order.split(",")]) if order else numbers).reshape(-1)


def _axes(groups: np.ndarray, mesh: Mapping[str, int], kind: str) -> tuple[str, ...]:
    """The axes of the mesh along which the groups lie; of a permutation, those that its pairs stay within."""
    grid = np.arange(math.prod(mesh.values())).reshape(list(mesh.values()))
    wanted = {frozenset(group) for group in groups.tolist()}
    large = [axis for axis, size in mesh.items() if size > 1]
    for axes in itertools.chain.from_iterable(itertools.combinations(large, n) for n in range(1, len(large) + 1)):
        order = sorted(range(len(mesh)), key=lambda i: list(mesh)[i] in axes)
        along = grid.transpose(order).reshape(-1, math.prod(mesh[axis] for axis in axes))
        along = {frozenset(group) for group in along.tolist()}
        within = kind == "collective-permute" and all(any(pair <= group for group in along) for pair in wanted)
        if along == wanted or within:
            return axes
    return (OTHER,)


def total(rows: Sequence[Collective]) -> float:
    """Bytes that a device sends in a step."""
    return sum(row.wire for row in rows)
