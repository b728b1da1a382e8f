"""Parser of the assembly text that LLVM writes for AMD GPUs (`CompiledKernel.asm["amdgcn"]`).

Not an assembler: instructions stay text, split into mnemonic, operands and modifiers. The syntax
is the one of LLVM's "User Guide for AMDGPU Backend" and "Syntax of AMDGPU Instruction Modifiers".
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Instruction:
    """One machine instruction as written, for example `v_add_f32_e64 v0, |v1|, -v2 clamp`."""

    op: str
    operands: list[str]
    modifiers: dict[str, Any]  # `clamp` -> True, `offset:16` -> 16, `op_sel:[0,1]` -> [0, 1]
    line: int  # in the assembly text
    text: str
    location: str = ""  # source file and line, from the .loc directives

    def where(self) -> str:
        """The instruction for an error message: text, line, source line."""
        source = f", {self.location}" if self.location else ""
        return f"{self.text}   [asm line {self.line}{source}]"


@dataclass
class AssemblyProgram:
    """The parsed text of one kernel and of the functions and data that stand beside it."""

    kernel: str
    instructions: list[Instruction]
    labels: dict[str, int]  # label -> index of the instruction behind it
    descriptor: dict[str, Any]  # .amdhsa_* directives without the prefix
    args: list[dict[str, Any]]  # .args of the metadata: .offset, .size, .value_kind
    metadata: dict[str, Any]  # the kernel's other entries in .amdgpu_metadata
    data: dict[str, bytes]  # initialised data by symbol
    arch: str = ""
    relocations: list[tuple[str, int, int, str]] = field(default_factory=list)

    def label_before(self, index: int) -> tuple[str, int]:
        """The label at or before an instruction, and how many instructions lie between."""
        at = [(place, name) for name, place in self.labels.items() if place <= index]
        if not at:
            return "the beginning", index
        place, name = max(at)
        return name, index - place


def split_outside_brackets(text: str, separators: str) -> list[str]:
    """Split at the separator characters that stand outside of () and []; no empty parts."""
    parts, current, depth = [], "", 0
    for character in text:
        if character in "([":
            depth += 1
        elif character in ")]":
            depth -= 1
        if depth == 0 and character in separators:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    parts.append(current.strip())
    return [part for part in parts if part]


def _number(text: str) -> int | None:
    try:
        return int(text.strip(), 0)
    except ValueError:
        return None


def _modifier(token: str) -> tuple[str, Any]:
    """`name:value`, `name:[a,b]`, `counter(n)` or a bare `name` -> (name, value)"""
    match = re.match(r"^([A-Za-z_]\w*):(.*)$", token)
    if match:
        name, value = match[1], match[2]
        if value.startswith("["):
            return name, [int(item, 0) for item in value[1:-1].split(",")]
        number = _number(value)
        return name, (value if number is None else number)
    match = re.match(r"^([a-z]+cnt)\((.*)\)$", token)
    if match:
        return match[1], int(match[2], 0)
    return token, True


_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"|;.*$|//.*$')


def _without_comment(line: str) -> str:
    if ";" not in line and "//" not in line:
        return line
    return _COMMENT.sub(lambda match: match[0] if match[0][0] == '"' else "", line)


_TAKES_NO_MODIFIERS = re.compile(r"^s_(?!load|store|buffer|dcache|atc|atomic|scratch)")


def parse_line(body: str) -> tuple[str, list[str], dict[str, Any]]:
    """`v_add_f32_e64 v0, |v1|, -v2 clamp` -> (mnemonic, operands, modifiers)"""
    op, _, rest = body.replace("\t", " ").partition(" ")
    rest = rest.strip()
    if op == "s_waitcnt":
        if _number(rest) is not None:
            return op, [rest], {}
        return op, [], dict(_modifier(token) for token in rest.replace("&", " ").split())
    operands = split_outside_brackets(rest, ",")
    if not operands or _TAKES_NO_MODIFIERS.match(op):
        return op, operands, {}
    # modifiers trail the last operand, separated by blanks
    tokens = split_outside_brackets(operands[-1], " ")
    only_modifiers = len(operands) == 1 and op.startswith(("buffer_inv", "buffer_wb"))
    last = [] if only_modifiers else tokens[:1]
    modifiers = dict(_modifier(token) for token in tokens[len(last) :])
    return op, operands[:-1] + last, modifiers


_DATA_BYTES = {
    ".byte": 1,
    ".short": 2,
    ".2byte": 2,
    ".hword": 2,
    ".long": 4,
    ".4byte": 4,
    ".int": 4,
    ".quad": 8,
    ".8byte": 8,
}


def _data(directive: str, rest: str) -> bytes | None:
    """The bytes of a data directive, symbols as zeros; None when it is no data directive."""
    if directive in (".ascii", ".asciz", ".string"):
        out = b""
        for match in re.finditer(r'"((?:[^"\\]|\\.)*)"', rest):
            out += match[1].encode("latin1").decode("unicode_escape").encode("latin1")
            out += b"\0" if directive != ".ascii" else b""
        return out
    size = _DATA_BYTES.get(directive)
    if size:
        values = [_number(item) or 0 for item in rest.split(",")]
        return b"".join((v & ((1 << 8 * size) - 1)).to_bytes(size, "little") for v in values)
    if directive in (".zero", ".skip", ".space"):
        count, _, fill = rest.partition(",")
        return bytes([int(fill, 0) & 255 if fill else 0]) * int(count, 0)
    return None


def _plain(value: str) -> int | str:
    number = _number(value)
    return value.strip("'\"") if number is None else number


def _kernel_metadata(text: str, kernel: str) -> dict[str, Any]:
    """Just enough of the YAML in .amdgpu_metadata: a kernel's scalar fields and its `.args`."""
    kernels: list[dict[str, Any]] = []
    current: dict[str, Any] | None = None
    argument: dict[str, Any] | None = None
    in_args = False
    for line in text.split("\n"):
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if not stripped or stripped in ("---", "..."):
            continue
        if stripped.startswith("amdhsa."):
            if not stripped.startswith("amdhsa.kernels"):
                current = None
            continue
        if indent == 2 and stripped.startswith("- "):
            current = {".args": []}
            kernels.append(current)
            in_args = False
            stripped = stripped[2:].strip()
            indent = 4
        if current is None:
            continue
        if indent == 4:
            key, _, value = stripped.partition(":")
            in_args = key == ".args"
            if not in_args:
                current[key] = _plain(value.strip())
        elif in_args:
            if stripped.startswith("- "):
                argument = {}
                current[".args"].append(argument)
                stripped = stripped[2:].strip()
            key, _, value = stripped.partition(":")
            if argument is not None:
                argument[key] = _plain(value.strip())
    for found in kernels:
        if found.get(".name") == kernel:
            return found
    return kernels[0] if kernels else {".args": []}


class _Parser:
    """What has been read so far, one line after the other."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.descriptors: dict[str, dict[str, Any]] = {}
        self.data: dict[str, bytes] = {}
        self.relocations: list[tuple[str, int, int, str]] = []
        self.metadata: list[str] = []
        self.arch = ""
        self.in_metadata = False
        self.descriptor: dict[str, Any] | None = None
        self.section = ".text"
        self.symbol: str | None = None
        self.location = ""
        self.files: dict[str, str] = {}

    def line(self, number: int, raw: str) -> None:
        if self.in_metadata:
            if ".end_amdgpu_metadata" in raw:
                self.in_metadata = False
            else:
                self.metadata.append(raw)
            return
        text = _without_comment(raw).strip()
        match = re.match(r"^([A-Za-z_.$@][\w.$@]*):\s*(.*)$", text)
        if match and not text.startswith((".amdhsa", ".loc")):
            self.label(match[1])
            text = match[2].strip()
        if text.startswith("."):
            directive, _, rest = text.replace("\t", " ", 1).partition(" ")
            self.directive(directive, rest.strip())
        elif text and self.section == ".text":
            op, operands, modifiers = parse_line(text)
            self.instructions.append(
                Instruction(op, operands, modifiers, number, text, self.location)
            )

    def label(self, name: str) -> None:
        if self.section == ".text":
            self.labels[name] = len(self.instructions)
        else:
            self.symbol = name
            self.data.setdefault(name, b"")

    def directive(self, name: str, rest: str) -> None:
        if name == ".amdgpu_metadata":
            self.in_metadata = True
        elif name == ".amdgcn_target":
            match = re.search(r"(gfx\w+)", rest)
            self.arch = match[1] if match else ""
        elif name == ".amdhsa_kernel":
            self.descriptor = self.descriptors.setdefault(rest, {})
        elif name == ".end_amdhsa_kernel":
            self.descriptor = None
        elif name.startswith(".amdhsa_") and self.descriptor is not None:
            value = _number(rest)
            self.descriptor[name.removeprefix(".amdhsa_")] = rest if value is None else value
        elif name in (".text", ".data", ".bss", ".rodata", ".section"):
            section = rest.split(",")[0].strip('"') if name == ".section" else name
            self.section = ".text" if section.startswith(".text") else section
            self.symbol = None
        elif name == ".loc":
            file, line, *_ = [*rest.split(), "", ""]
            path = self.files.get(file, file).rsplit("/", 1)[-1]
            self.location = f"{path}:{line}" if line else ""
        elif name == ".file":
            match = re.match(r'(\d+)\s+"([^"]*)"\s*(?:"([^"]*)")?', rest)
            if match:
                self.files[match[1]] = match[3] or match[2]
        elif self.symbol is not None and not self.section.startswith(".debug"):
            data = _data(name, rest)
            if data is not None:
                if _DATA_BYTES.get(name, 0) >= 4 and _number(rest.split(",")[0]) is None:
                    at = len(self.data[self.symbol])
                    self.relocations.append((self.symbol, at, len(data), rest))
                self.data[self.symbol] += data


def parse(text: str, kernel: str | None = None) -> AssemblyProgram:
    """Parse one module; `kernel` chooses among several, None takes the first."""
    parser = _Parser()
    for number, line in enumerate(text.split("\n"), 1):
        parser.line(number, line)
    if kernel not in parser.descriptors and (kernel is None or len(parser.descriptors) == 1):
        kernel = next(iter(parser.descriptors))
    assert kernel is not None
    metadata = _kernel_metadata("\n".join(parser.metadata), kernel)
    return AssemblyProgram(
        kernel,
        parser.instructions,
        parser.labels,
        parser.descriptors.get(kernel, {}),
        metadata.get(".args", []),
        metadata,
        parser.data,
        parser.arch,
        parser.relocations,
    )
