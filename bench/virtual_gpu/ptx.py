"""PTX as C++: what Triton compiled for a GPU, as a function of vectors of 32 lanes that `machine.h` runs.

Only what Triton writes is known here; anything else is an error that shows the line. Lanes of a warp may part in places
that have no instruction for a whole warp: there, blocks are run one after the other for the lanes that come by.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

KINDS = {"p": "Mask", "rs": "U16", "r": "U32", "f": "U32", "rd": "U64"}
"""A register's prefix -> the lanes' type; numbers are kept as their bits."""

SPECIAL = {
    "%tid.x": "w.tid",
    "%tid.y": "U32{}",
    "%tid.z": "U32{}",
    **{f"%ctaid.{axis}": f"splat<U32>(w.block->id[{i}])" for i, axis in enumerate("xyz")},
    **{f"%nctaid.{axis}": f"splat<U32>(w.launch->grid[{i}])" for i, axis in enumerate("xyz")},
    "global_smem": "U32{}",
}
ALL = "splat<Mask>(~0u)"


class UnknownPTXError(ValueError):
    """PTX that is not known here."""


@dataclass(frozen=True)
class Instruction:
    """One line."""

    line: int
    guard: str | None
    """the register whose lanes take part; None: all do"""
    negated: bool
    opcode: str
    operands: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """Parts of the opcode."""
        return self.opcode.replace("::cta", "").split(".")

    @property
    def type(self) -> str:
        """The last part of the opcode, such as f32."""
        return self.words[-1]


@dataclass
class BasicBlock:
    """Instructions that follow each other; the last may branch."""

    number: int
    instructions: list[Instruction] = field(default_factory=list)
    next: list[int] = field(default_factory=list)
    """where it goes: for a branch by a register where the branch goes, then the block below"""


@dataclass
class Function:
    """A kernel."""

    name: str
    parameters: int
    registers: dict[str, int]
    """prefix -> how many there are"""
    blocks: list[BasicBlock]

    def count(self, passes: list[int]) -> Counter[str]:
        """Instructions that warps executed, by opcode. passes: of each block, how often a warp went through."""
        total: Counter[str] = Counter()
        for block, times in zip(self.blocks, passes, strict=True):
            for instruction in block.instructions:
                total[instruction.opcode] += times
        return total


_INSTRUCTION = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?;$")
_REGISTER = re.compile(r"%(rs|rd|r|f|p)(\d+)$")


def parse(text: str) -> Function:
    """Read PTX of one kernel.

    Raises:
        UnknownPTXError: a line that is not understood.
    """
    name = re.search(r"\.entry (\w+)\(", text)
    assert name is not None
    parameters = len(re.findall(r"\.param \.\w+ .*?_param_\d+", text))
    registers = {kind: int(n) for kind, n in re.findall(r"\.reg \.\w+\s+%(\w+)<(\d+)>;", text)}
    blocks = [BasicBlock(0)]
    labels: dict[str, int] = {}
    targets = set(re.findall(r"\bbra(?:\.uni)?\s+(\S+);", text))
    started = False
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("//")[0].strip()
        if line == "{":
            started = True
        if line.startswith(".section"):
            break
        if not started or not line or line[0] in "{}.":
            continue
        if line.endswith(":"):
            if line[:-1] not in targets:  # it is for debuggers
                continue
            if blocks[-1].instructions:
                blocks.append(BasicBlock(len(blocks)))
            labels[line[:-1]] = blocks[-1].number
            continue
        found = _INSTRUCTION.match(line)
        if found is None:
            raise UnknownPTXError(f"line {number}: {line}")
        operands = re.findall(r"\{[^}]*\}|\[[^]]*\]|[^\s,{}\[\]]+", found[4] or "")
        instruction = Instruction(number, found[2], found[1] == "!", found[3], tuple(operands))
        blocks[-1].instructions.append(instruction)
        if instruction.words[0] in ("bra", "ret"):
            blocks.append(BasicBlock(len(blocks)))
    if not blocks[-1].instructions:
        blocks.pop()
    for block in blocks:
        last = block.instructions[-1]
        if last.words[0] == "bra":
            block.next.append(labels[last.operands[0]])
        if last.words[0] not in ("bra", "ret") or last.guard is not None:
            block.next.append(block.number + 1)
    return Function(name[1], parameters, registers, blocks)


def translate(function: Function) -> str:
    """Return the C++ of a kernel: `gpu::kernel`."""
    declared = []
    for kind, count in function.registers.items():
        names = ", ".join(f"{kind}{i}" for i in range(count))
        declared.append(f"{KINDS[kind]} {names};")
    regions = parting(function.blocks)
    inside = {number for region in regions.values() for number in region[0]}
    body = []
    for block in function.blocks:
        if block.number in inside:
            continue
        body.append(f"L{block.number}: w.launch->counts[{block.number}]++;")
        body += [_emit(each, None) for each in block.instructions if each.words[0] not in ("bra", "ret")]
        if block.number in regions:
            body += _emit_region(function.blocks, block, *regions[block.number])
        else:
            body.append(_leave(block))
    lines = "\n  ".join([*declared, *body])
    return f'#include "machine.h"\n\nvoid gpu::kernel(Warp& w) {{\n  {lines}\n}}\n'


def _leave(block: BasicBlock) -> str:
    last = block.instructions[-1]
    if not block.next:
        return "return;"
    if len(block.next) == 1:
        return f"goto L{block.next[0]};"
    return f"if (uniform({_guard(last, None)}, {last.line})) goto L{block.next[0]}; else goto L{block.next[1]};"


def parting(blocks: list[BasicBlock]) -> dict[int, tuple[list[int], int]]:
    """Where lanes may part: block -> the blocks that some of them go through, in order, and where all meet again."""
    meets = _postdominators(blocks)
    before: dict[int, set[int]] = {block.number: set() for block in blocks}
    for block in blocks:
        for number in block.next:
            before[number].add(block.number)
    regions: dict[int, tuple[list[int], int]] = {}
    taken: set[int] = set()
    for block in blocks:
        meeting = meets[block.number]
        if len(block.next) < 2 or meeting is None or block.number in taken:
            continue
        order = _between(blocks, block.number, meeting)
        if order is None or not order:
            continue
        closed = all(before[number] <= {block.number, *order} for number in order)
        if closed and not any(_is_collective(each) for number in order for each in blocks[number].instructions):
            regions[block.number] = (order, meeting)
            taken.update(order)
    return regions


def _is_collective(instruction: Instruction) -> bool:
    return "sync" in instruction.words or instruction.words[0] in ("ret", "cp", "ldmatrix", "stmatrix")


def _between(blocks: list[BasicBlock], start: int, end: int) -> list[int] | None:
    """Blocks on ways from one to another, each after all that lead to it; None if there is a loop."""
    order: list[int] = []
    state: dict[int, bool] = {end: True}

    def visit(number: int) -> bool:
        if number in state:
            return state[number]
        state[number] = False
        if number == start or not all(visit(each) for each in blocks[number].next):
            return False
        state[number] = True
        order.append(number)
        return True

    if not all(visit(each) for each in blocks[start].next):
        return None
    return order[::-1]


def _postdominators(blocks: list[BasicBlock]) -> list[int | None]:
    """Of each block the first that all ways from it to the end go through."""
    everything = set(range(len(blocks)))
    through = [everything if block.next else {block.number} for block in blocks]
    changed = True
    while changed:
        changed = False
        for block in reversed(blocks):
            if block.next:
                new = set.intersection(*(through[each] for each in block.next)) | {block.number}
                changed |= new != through[block.number]
                through[block.number] = new
    first = []
    for block in blocks:
        later = through[block.number] - {block.number}
        first.append(next((each for each in later if through[each] == later), None))
    return first


def _emit_region(blocks: list[BasicBlock], start: BasicBlock, order: list[int], meeting: int) -> list[str]:
    lines = ["{"]
    lines += [f"Mask at{number} = {{}};" for number in order]

    def leave(block: BasicBlock, mask: str) -> list[str]:
        last = block.instructions[-1]
        if len(block.next) == 1:
            ways = [(block.next[0], mask)]
        else:
            guard = _guard(last, None)
            ways = [(block.next[0], f"({mask} & {guard})"), (block.next[1], f"({mask} & ~{guard})")]
        return [f"at{number} |= {lanes};" for number, lanes in ways if number != meeting]

    lines += leave(start, ALL)
    for number in order:
        lines.append(f"if (bits_of(at{number})) {{ w.launch->counts[{number}]++;")
        lines += [
            _emit(each, f"at{number}") for each in blocks[number].instructions if each.words[0] not in ("bra", "ret")
        ]
        lines += [*leave(blocks[number], f"at{number}"), "}"]
    return [*lines, "}", f"goto L{meeting};"]


def _guard(instruction: Instruction, mask: str | None) -> str:
    """The lanes that take part."""
    if instruction.guard is None:
        return mask or ALL
    lanes = f"{'~' if instruction.negated else ''}{instruction.guard[1:]}"
    return f"({mask} & {lanes})" if mask else f"({lanes})"


def _vector(type: str) -> str:
    """C++ type of the lanes of a PTX type: u32 -> U32."""
    if type == "pred":
        return "Mask"
    letter = {"b": "U", "u": "U", "s": "S", "f": "F"}[type[0]]
    return letter + type[1:]


def value(operand: str, type: str) -> str:
    """A C++ expression for the lanes of an operand, seen as a type."""
    vector = _vector(type)
    if operand in SPECIAL:
        return f"(({vector}){SPECIAL[operand]})"
    found = _REGISTER.match(operand)
    if found is not None:
        width = {"Mask": 0, "U16": 16, "U32": 32, "U64": 64}[KINDS[found[1]]]
        if width and width != int(type[1:]):  # the low bits of a wider register
            return f"(({vector})to<U{type[1:]}>({found[1]}{found[2]}))"
        return f"(({vector}){found[1]}{found[2]})" if width else f"{found[1]}{found[2]}"
    if operand.startswith("0f"):
        return f"(({vector})splat<U32>(0x{operand[2:]}u))"
    if re.fullmatch(r"-?(\d+|0x[0-9A-Fa-f]+)", operand):
        if type == "pred":
            return ALL if int(operand, 0) else "Mask{}"
        bits = int(type[1:])
        return f"(({vector})splat<U{bits}>({int(operand, 0) % 2**bits}ull))"
    raise UnknownPTXError(f"operand {operand} as {type}")


def _registers(operand: str) -> list[str]:
    """Names in braces, or the one."""
    return [each.strip() for each in operand.strip("{} ").split(",")]


def _address(operand: str) -> tuple[str, str]:
    """A register or symbol, and an offset."""
    base, _, offset = operand.strip("[] ").partition("+")
    return base.strip(), offset.strip() or "0"


def _assign(target: str, expression: str, mask: str | None) -> str:
    if target == "_":
        return ""
    name = target[1:]
    found = _REGISTER.match(target)
    if found is None:
        raise UnknownPTXError(f"target {target}")
    expression = f"({KINDS[found[1]]})({expression})"
    return f"{name} = {f'pick({mask}, {expression}, {name})' if mask else expression};"


def _infix(operator: str) -> Callable[[Instruction], str]:
    def emit(each: Instruction) -> str:
        type = each.type if each.type[0] in "bfp" else f"u{each.type[1:]}"  # unsigned numbers wrap
        left, right = (value(operand, type) for operand in each.operands[1:])
        return f"{left} {operator} {right}"

    return emit


def _call(name: str, *types: str) -> Callable[[Instruction], str]:
    """A function of the operands, of the instruction's type unless said otherwise."""

    def emit(each: Instruction) -> str:
        wanted = types or (each.type,) * (len(each.operands) - 1)
        operands = zip(each.operands[1:], wanted, strict=False)
        return f"{name}({', '.join(value(operand, type or each.type) for operand, type in operands)})"

    return emit


def _compare(each: Instruction) -> str:
    kind, type = each.words[1], each.type
    left, right = (value(operand, type) for operand in each.operands[1:])
    real = type[0] == "f"
    ordered = f"(({left} == {left}) & ({right} == {right}))"
    if kind == "num":
        return f"mask_of{ordered}"
    if kind == "nan":
        return f"~mask_of{ordered}"
    sign = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}[kind[:2]]
    said = f"({left} {sign} {right})"
    if not real:
        return f"mask_of{said}"
    if kind.endswith("u"):
        return f"(mask_of{said} | ~mask_of{ordered})"
    return f"(mask_of{said} & mask_of{ordered})" if kind == "ne" else f"mask_of{said}"


def _extreme(each: Instruction) -> str:
    smaller = each.words[0] == "min"
    left, right = (value(operand, each.type) for operand in each.operands[1:])
    if each.type[0] == "f":
        return f"{'smaller' if smaller else 'larger'}({left}, {right})"
    return f"({left} {'<' if smaller else '>'} {right} ? {left} : {right})"


def _multiply(each: Instruction) -> str:
    """Products of integers, `mad` adds a third."""
    type, mode = each.type, each.words[1]
    if type == "f32":
        return _infix("*")(each)
    if mode == "hi":
        return _call("high_half")(each)
    bits = int(type[1:])
    if mode == "lo":
        product = " * ".join(value(operand, f"u{bits}") for operand in each.operands[1:3])
        wide = f"u{bits}"
    else:
        wide = f"u{2 * bits}"
        target = _vector(f"{type[0]}{2 * bits}")
        product = " * ".join(f"(U{2 * bits})to<{target}>({value(operand, type)})" for operand in each.operands[1:3])
    return product if each.words[0] == "mul" else f"{product} + {value(each.operands[3], wide)}"


def _convert(each: Instruction) -> str:
    target, source = each.words[-2:]
    if source in ("bf16", "f16") and target == "f32":
        return f"(U32)widen_{source}({value(each.operands[1], 'b16')})"
    if target in ("bf16", "f16") and source == "f32":
        return f"to<U16>(round_{target}({value(each.operands[1], 'f32')}))"
    if target in ("bf16x2", "f16x2"):
        high, low = (f"round_{target[:-2]}({value(operand, 'f32')})" for operand in each.operands[1:])
        return f"{high} << 16 | {low}"
    if source[0] in "bf":
        raise UnknownPTXError(each.opcode)
    return f"to<{_vector(target)}>({value(each.operands[1], source)})"


def _select(each: Instruction) -> str:
    bits = f"b{each.type[1:]}"
    return f"pick({each.operands[3][1:]}, {value(each.operands[1], bits)}, {value(each.operands[2], bits)})"


def _shift(each: Instruction) -> str:
    left = each.words[0] == "shl"
    type = f"u{each.type[1:]}" if each.type[0] == "b" else each.type
    number, by = each.operands[1:]
    if by.isdigit() and int(by) < int(type[1:]):
        return f"{value(number, type)} {'<<' if left else '>>'} {by}"
    return f"shift_{'left' if left else 'right'}({value(number, type)}, {value(by, 'u32')})"


def _reduce(each: Instruction) -> str:
    operation = {"add": "a + b", "min": "std::min(a, b)", "max": "std::max(a, b)"}[each.words[2]]
    return f"reduce({value(each.operands[1], each.type)}, [](auto a, auto b) {{ return {operation}; }})"


EXPRESSIONS: dict[str, Callable[[Instruction], str]] = {
    "add": _infix("+"),
    "sub": _infix("-"),
    "and": _infix("&"),
    "or": _infix("|"),
    "xor": _infix("^"),
    "mul": _multiply,
    "mad": _multiply,
    "fma": _call("fma"),
    "div": lambda each: " / ".join(value(operand, each.type) for operand in each.operands[1:]),
    "rem": lambda each: " % ".join(value(operand, each.type) for operand in each.operands[1:]),
    "min": _extreme,
    "max": _extreme,
    "not": lambda each: f"~{value(each.operands[1], each.type)}",
    "neg": lambda each: f"-{value(each.operands[1], each.type)}",
    "abs": _call("absolute", "b32"),
    "mov": lambda each: value(each.operands[1], each.type),
    "setp": _compare,
    "selp": _select,
    "cvt": _convert,
    "shl": _shift,
    "shr": _shift,
    "bfe": _call("field", "", "u32", "u32"),
    "popc": _call("count_ones"),
    "ex2": _call("exp2_of"),
    "rsqrt": _call("rsqrt_of"),
    "redux": _reduce,
}
"""First word of an opcode -> the lanes of its first operand."""


def _emit(each: Instruction, mask: str | None) -> str:
    """C++ of an instruction that does not branch, for the lanes of a mask."""
    try:
        return _statement(each, mask)
    except (KeyError, IndexError, ValueError) as error:
        raise UnknownPTXError(f"line {each.line}: {each.opcode} {', '.join(each.operands)}: {error}") from error


def _statement(each: Instruction, mask: str | None) -> str:
    words, first = each.words, each.words[0]
    if first in ("ld", "st") and words[1] == "param":
        base, _ = _address(each.operands[1])
        slot = int(base.rsplit("_", 1)[1])
        number = f"splat<{_vector(each.type)}>(w.launch->parameters[{slot}])"
        kind = _REGISTER.match(each.operands[0])
        assert kind is not None
        wide = KINDS[kind[1]].replace("U", _vector(each.type)[0])
        return _assign(each.operands[0], f"to<{wide}>({number})", mask)
    if first in ("ld", "st"):
        return _access(each, mask)
    if first == "atom":
        return _atomic(each, mask)
    if first == "bar":
        return "w.barrier();"
    if first in ("membar", "fence"):
        return ""
    if first == "cp":
        return _copy(each)
    if first in ("ldmatrix", "stmatrix"):
        return _matrix(each)
    if first == "mma":
        if words[-3] not in ("bf16", "f16"):
            raise UnknownPTXError("a product of other numbers")
        out, a, b, c = ([name[1:] for name in _registers(operand)] for operand in each.operands)
        given = " ".join(
            f"const U32 {name}[] = {{{', '.join(held)}}};" for name, held in zip("abc", (a, b, c), strict=True)
        )
        return f"{{ {given} U32 out[4]; multiply<widen_{words[-3]}>(out, a, b, c); {_take('out', out)} }}"
    if first == "shfl":
        target, *rest = each.operands
        numbers = ", ".join(value(operand, "b32") for operand in rest[:3])
        return _assign(target, f"shuffle<Shuffle::{words[2]}>({numbers})", mask)
    if each.guard is not None:
        raise UnknownPTXError("a guard that is not looked at")
    if first == "mov" and (each.operands[0][0] == "{" or each.operands[1][0] == "{"):
        return _pack(each, mask)
    return _assign(each.operands[0], EXPRESSIONS[first](each), mask)


def _pack(each: Instruction, mask: str | None) -> str:
    bits = int(each.type[1:])
    half = bits // 2
    target, source = each.operands
    if source[0] == "{":
        low, high = (f"to<U{bits}>({value(name, f'b{half}')})" for name in _registers(source))
        return _assign(target, f"{low} | {high} << {half}", mask)
    number = value(source, f"b{bits}")
    low, high = _registers(target)
    return _assign(low, f"to<U{half}>({number})", mask) + " " + _assign(high, f"to<U{half}>({number} >> {half})", mask)


def _access(each: Instruction, mask: str | None) -> str:
    """Loads and stores."""
    loads, space = each.words[0] == "ld", each.words[1]
    if space not in ("global", "shared"):
        raise UnknownPTXError(f"memory {space}")
    (numbers, place) = each.operands if loads else each.operands[::-1]
    base, offset = _address(place)
    names = _registers(numbers)
    type = f"{'' if each.type[0] == 's' else 'u'}int{each.type[1:]}_t"
    where = f"{value(base, 'b64' if space == 'global' else 'b32')}, {offset}"
    verb = f"{'load' if loads else 'store'}_{space}<{type}, {len(names)}>"
    kinds = (KINDS[found[1]] for name in names if (found := _REGISTER.match(name)))
    vector = next(kinds, f"U{max(16, int(each.type[1:]))}")
    held = [name[1:] if _REGISTER.match(name) else "{}" if name == "_" else _constant(name, vector) for name in names]
    call = f"{verb}(w, {_guard(each, mask)}, {where}, numbers, {each.line});"
    if not loads:
        return f"{{ const {vector} numbers[] = {{{', '.join(held)}}}; {call} }}"
    before = f" = {{{', '.join(held)}}}" if mask or each.guard else ""  # lanes that load nothing keep what they have
    after = _take("numbers", [name[1:] for name in names])
    return f"{{ {vector} numbers[{len(names)}]{before}; {call} {after} }}"


def _constant(operand: str, vector: str) -> str:
    return f"({vector}){value(operand, f'b{vector[1:]}')}"


def _take(array: str, names: list[str]) -> str:
    """Registers' new values; a name that is empty takes none."""
    return " ".join(f"{name} = {array}[{i}];" for i, name in enumerate(names) if name)


def _atomic(each: Instruction, mask: str | None) -> str:
    operation, type = each.words[-2:]
    does = {"add": "a + b", "exch": "b", "min": "std::min(a, b)", "max": "std::max(a, b)"}[operation]
    number = f"{'' if type[0] == 's' else 'u'}int{type[1:]}_t"
    target, place, operand = each.operands
    base, offset = _address(place)
    bits = f"b{type[1:]}"
    return (
        f"atomic<{number}>(w, {_guard(each, mask)}, {target[1:]}, {value(base, 'b64')}, {offset}, "
        f"{value(operand, bits)}, []({number} a, {number} b) {{ (void)a; return {does}; }}, {each.line});"
    )


def _copy(each: Instruction) -> str:
    if each.words[2] == "commit_group":
        return "copy_commit(w);"
    if each.words[2] == "wait_group":
        return f"copy_wait(w, {each.operands[0]});"
    if each.words[2] == "wait_all":
        return "copy_commit(w); copy_wait(w, 0);"
    target, source, size, *filled = each.operands
    (to_base, to_offset), (from_base, from_offset) = _address(target), _address(source)
    count = value((filled or [size])[0], "u32")
    return (
        f"copy_async<{int(size, 0)}>(w, {_guard(each, None)}, {value(to_base, 'b32')}, {to_offset}, "
        f"{value(from_base, 'b64')}, {from_offset}, {count}, {each.line});"
    )


def _matrix(each: Instruction) -> str:
    loads = each.words[0] == "ldmatrix"
    names, place = each.operands if loads else each.operands[::-1]
    base, offset = _address(place)
    held = [name[1:] for name in _registers(names)]
    transposed = "true" if "trans" in each.words else "false"
    verb = f"{'load' if loads else 'store'}_matrix<{len(held)}, {transposed}>"
    call = f"{verb}(w, {value(base, 'b32')}, {offset}, matrices, {each.line});"
    if not loads:
        return f"{{ const U32 matrices[] = {{{', '.join(held)}}}; {call} }}"
    return f"{{ U32 matrices[{len(held)}]; {call} {_take('matrices', held)} }}"
