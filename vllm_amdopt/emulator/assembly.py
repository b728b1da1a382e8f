"""Parser for the textual AMDGPU assembly LLVM/Triton emits (`CompiledKernel.asm['amdgcn']`).  Pure stdlib.

parse(text, kernel=None) -> Prog: instructions (mnemonic, operand strings, modifier dict), label -> instruction index, kernel
descriptor (.amdhsa_*), kernel arguments (.amdgpu_metadata), initialised data objects (.rodata / .data) by symbol."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Ins:
    op: str
    ops: list
    mods: dict
    line: int
    text: str
    loc: str = ""


@dataclass
class Prog:
    kernel: str
    ins: list
    labels: dict
    kd: dict
    args: list
    meta: dict
    data: dict  # symbol -> bytes
    arch: str = ""
    data_relocs: list = field(default_factory=list)


def _split(s, seps):
    """split at depth 0 ((), [], ||) on the given separator characters"""
    out, cur, d = [], "", 0
    for c in s:
        if c in "([":
            d += 1
        elif c in ")]":
            d -= 1
        if d == 0 and c in seps:
            if cur.strip():
                out.append(cur.strip())
            cur = ""
        else:
            cur += c
    if cur.strip():
        out.append(cur.strip())
    return out


def _num(s):
    s = s.strip()
    try:
        return int(s, 0)
    except ValueError:
        return None


def _mod(tok):
    """one trailing modifier -> (key, value)"""
    m = re.match(r"^([A-Za-z_][\w]*):(.*)$", tok)
    if m:
        k, v = m[1], m[2]
        if v.startswith("["):
            return k, [int(x, 0) for x in v[1:-1].split(",")]
        n = _num(v)
        return k, (v if n is None else n)
    m = re.match(r"^([a-z]+cnt)\((.*)\)$", tok)
    if m:
        return m[1], int(m[2], 0)
    return tok, True


_strip = re.compile(r'"(?:[^"\\]|\\.)*"|;.*$|//.*$')


def _clean(l):
    if ";" not in l and "//" not in l:
        return l
    return _strip.sub(lambda m: m[0] if m[0][0] == '"' else "", l)


def parse_line(body):
    """'v_add_f32_e64 v0, |v1|, -v2 clamp' -> (op, operands, modifiers)"""
    p = body.split(None, 1)
    op, rest = p[0], (p[1] if len(p) > 1 else "")
    if op.startswith("s_waitcnt") and op in ("s_waitcnt",):
        if _num(rest) is not None:
            return op, [rest], {}
        return op, [], dict(_mod(t) for t in rest.replace("&", " ").split())
    ops, mods = _split(rest, ","), {}
    # modifiers trail the last operand, separated by blanks; commas inside [] are protected by _split
    if ops:
        toks = _split(ops[-1], " \t")
        if re.match(
            r"^(s_(?!load|store|buffer|dcache|atc|atomic|scratch)|buffer_(inv|wb)).*", op
        ) and not op.startswith("buffer_"):
            return op, ops, {}
        first = (
            []
            if (not toks or (len(ops) == 1 and op.startswith(("buffer_inv", "buffer_wb"))))
            else toks[:1]
        )
        for t in toks[len(first) :]:
            k, v = _mod(t)
            mods[k] = v
        ops = ops[:-1] + first
    return op, ops, mods


def _bytes(d, rest, base):
    out = b""
    if d in (".ascii", ".asciz", ".string"):
        for m in re.finditer(r'"((?:[^"\\]|\\.)*)"', rest):
            s = m[1].encode("latin1").decode("unicode_escape").encode("latin1")
            out += s + (b"\0" if d != ".ascii" else b"")
        return out
    n = {
        ".byte": 1,
        ".short": 2,
        ".2byte": 2,
        ".hword": 2,
        ".long": 4,
        ".4byte": 4,
        ".int": 4,
        ".quad": 8,
        ".8byte": 8,
    }.get(d)
    if n:
        for x in rest.split(","):
            v = _num(x)
            out += ((v or 0) & ((1 << 8 * n) - 1)).to_bytes(n, "little")
        return out
    if d in (".zero", ".skip", ".space"):
        p = rest.split(",")
        return bytes([int(p[1], 0) & 255 if len(p) > 1 else 0]) * int(p[0], 0)
    return None


def _yaml_args(text, kernel):
    """just enough of the .amdgpu_metadata YAML: per kernel the .args list and scalar fields"""
    kernels, cur, arg, in_args = [], None, None, False
    for l in text.split("\n"):
        s = l.strip()
        ind = len(l) - len(l.lstrip())
        if not s or s in ("---", "..."):
            continue
        if s.startswith("amdhsa.") and not s.startswith("amdhsa.kernels"):
            cur = None
            continue
        if s.startswith("amdhsa.kernels"):
            continue
        if ind == 2 and s.startswith("- "):
            cur = {".args": []}
            kernels.append(cur)
            in_args = False
            s = s[2:].strip()
            ind = 4
        if cur is None:
            continue
        if ind == 4:
            k, _, v = s.partition(":")
            v = v.strip()
            in_args = k == ".args"
            if not in_args:
                cur[k] = (
                    int(v, 0)
                    if re.fullmatch(r"-?(0x)?[0-9a-fA-F]+", v) and _num(v) is not None
                    else v.strip("'\"")
                )
            continue
        if in_args:
            if s.startswith("- "):
                arg = {}
                cur[".args"].append(arg)
                s = s[2:].strip()
            k, _, v = s.partition(":")
            v = v.strip()
            if arg is not None:
                arg[k] = int(v, 0) if _num(v) is not None else v.strip("'\"")
    for k in kernels:
        if k.get(".name") == kernel:
            return k
    return kernels[0] if kernels else {".args": []}


def parse(text, kernel=None):
    lines = text.split("\n")
    ins, labels, kds, data, order, arch = [], {}, {}, {}, [], ""
    meta_txt, in_meta, kd, sect, cur_sym, loc, files = [], False, None, ".text", None, "", {}
    relocs = []
    for ln, raw in enumerate(lines, 1):
        if in_meta:
            if ".end_amdgpu_metadata" in raw:
                in_meta = False
            else:
                meta_txt.append(raw)
            continue
        l = _clean(raw).strip()
        if not l:
            continue
        m = re.match(r"^([A-Za-z_.$@][\w.$@]*):\s*(.*)$", l)
        if m and not l.startswith((".amdhsa", ".loc")):
            if sect == ".text":
                labels[m[1]] = len(ins)
                order.append(m[1])
            else:
                cur_sym = m[1]
                data.setdefault(cur_sym, b"")
            l = m[2].strip()
            if not l:
                continue
        if l[0] == ".":
            d, _, rest = (
                l.partition(" ")
                if " " in l and ("\t" not in l or l.index(" ") < l.index("\t"))
                else l.partition("\t")
            )
            rest = rest.strip()
            if d == ".amdgpu_metadata":
                in_meta = True
            elif d == ".amdgcn_target":
                mm = re.search(r"(gfx\w+)", rest)
                arch = mm[1] if mm else ""
            elif d == ".amdhsa_kernel":
                kd = kds.setdefault(rest, {})
            elif d == ".end_amdhsa_kernel":
                kd = None
            elif d.startswith(".amdhsa_") and kd is not None:
                kd[d[8:]] = _num(rest) if _num(rest) is not None else rest
            elif d in (".text", ".data", ".bss", ".rodata"):
                sect = d
                cur_sym = None
            elif d == ".section":
                nm = rest.split(",")[0].strip('"')
                sect = ".text" if nm.startswith(".text") else nm
                cur_sym = None
            elif d == ".loc":
                loc = rest
            elif d == ".file":
                mm = re.match(r'(\d+)\s+"([^"]*)"\s*(?:"([^"]*)")?', rest)
                if mm:
                    files[mm[1]] = mm[3] or mm[2]
            elif cur_sym is not None and not sect.startswith(".debug"):
                b = _bytes(d, rest, len(data[cur_sym]))
                if b is not None:
                    if d in (".quad", ".8byte", ".long") and _num(rest.split(",")[0]) is None:
                        relocs.append((cur_sym, len(data[cur_sym]), len(b), rest))
                    data[cur_sym] += b
            continue
        if sect != ".text":
            continue
        op, ops, mods = parse_line(l)
        lf = loc.split()
        ins.append(
            Ins(
                op,
                ops,
                mods,
                ln,
                l,
                f"{files.get(lf[0], lf[0]).rsplit('/', 1)[-1]}:{lf[1]}" if len(lf) > 1 else "",
            )
        )
    if kernel is None or kernel not in kds:
        kernel = next(iter(kds)) if kernel is None or len(kds) == 1 else kernel
    meta = _yaml_args("\n".join(meta_txt), kernel)
    return Prog(
        kernel, ins, labels, kds.get(kernel, {}), meta.get(".args", []), meta, data, arch, relocs
    )
