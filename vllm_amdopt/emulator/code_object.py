"""Parse an AMDGPU code object (hsaco): kernels, descriptors, metadata."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


# ---- msgpack (only the subset used by AMDGPU notes) ------------------------------------------
def unpackb(b: bytes):
    pos = 0

    def rd(n):
        nonlocal pos
        r = b[pos : pos + n]
        pos += n
        return r

    def one():
        c = rd(1)[0]
        if c <= 0x7F:
            return c
        if c <= 0x8F:
            return {one(): one() for _ in range(c & 15)}
        if c <= 0x9F:
            return [one() for _ in range(c & 15)]
        if c <= 0xBF:
            return rd(c & 31).decode()
        if c == 0xC0:
            return None
        if c in (0xC2, 0xC3):
            return c == 0xC3
        if c in (0xC4, 0xC5, 0xC6):
            return rd(int.from_bytes(rd(1 << (c - 0xC4)), "big"))
        if c == 0xCA:
            return struct.unpack(">f", rd(4))[0]
        if c == 0xCB:
            return struct.unpack(">d", rd(8))[0]
        if 0xCC <= c <= 0xCF:
            return int.from_bytes(rd(1 << (c - 0xCC)), "big")
        if 0xD0 <= c <= 0xD3:
            return int.from_bytes(rd(1 << (c - 0xD0)), "big", signed=True)
        if 0xD9 <= c <= 0xDB:
            return rd(int.from_bytes(rd(1 << (c - 0xD9)), "big")).decode()
        if c in (0xDC, 0xDD):
            return [one() for _ in range(int.from_bytes(rd(2 if c == 0xDC else 4), "big"))]
        if c in (0xDE, 0xDF):
            return {one(): one() for _ in range(int.from_bytes(rd(2 if c == 0xDE else 4), "big"))}
        if c >= 0xE0:
            return c - 256
        raise ValueError(f"msgpack byte {c:#x}")

    return one()


@dataclass
class Kernel:
    name: str
    entry: int  # offset of first instruction in the image
    kd: dict
    meta: dict
    args: list = field(default_factory=list)


@dataclass
class CodeObject:
    image: bytearray  # loaded image (PT_LOAD segments at their virtual addresses)
    kernels: dict
    target: str
    symbols: dict


def parse_kd(b: bytes, va: int) -> dict:
    gs, ps, ks = struct.unpack_from("<III", b, 0)
    (entry,) = struct.unpack_from("<q", b, 16)
    rsrc3, rsrc1, rsrc2 = struct.unpack_from("<III", b, 44)
    props, preload = struct.unpack_from("<HH", b, 56)
    return {
        "lds": gs,
        "scratch": ps,
        "kernarg_size": ks,
        "entry": va + entry,
        "rsrc1": rsrc1,
        "rsrc2": rsrc2,
        "rsrc3": rsrc3,
        "props": props,
        "preload_len": preload & 0x7F,
        "preload_off": preload >> 7,
        "user_sgprs": (rsrc2 >> 1) & 0x1F,
        "wgid": [(rsrc2 >> 7) & 1, (rsrc2 >> 8) & 1, (rsrc2 >> 9) & 1],
        "wginfo": (rsrc2 >> 10) & 1,
        "vgpr_wi": (rsrc2 >> 11) & 3,
        "scratch_en": rsrc2 & 1,
        "float_mode": (rsrc1 >> 12) & 0xFF,
        "dx10_clamp": (rsrc1 >> 21) & 1,
        "ieee": (rsrc1 >> 23) & 1,
        "accum_offset": ((rsrc3 & 0x3F) + 1) * 4,
        "tg_split": (rsrc3 >> 16) & 1,
        "en": {
            "private_segment_buffer": props & 1,
            "dispatch_ptr": props >> 1 & 1,
            "queue_ptr": props >> 2 & 1,
            "kernarg_ptr": props >> 3 & 1,
            "dispatch_id": props >> 4 & 1,
            "flat_scratch_init": props >> 5 & 1,
            "private_segment_size": props >> 6 & 1,
            "wave32": props >> 10 & 1,
            "dyn_stack": props >> 11 & 1,
        },
    }


def load(hsaco: bytes) -> CodeObject:
    assert hsaco[:4] == b"\x7fELF"
    phoff, shoff = struct.unpack_from("<QQ", hsaco, 32)
    phentsize, phnum, shentsize, shnum, _shstrndx = struct.unpack_from("<HHHHH", hsaco, 54)
    image, notes = bytearray(), None
    for i in range(phnum):
        typ, _flags, off, va, _pa, fsz, msz, _align = struct.unpack_from(
            "<IIQQQQQQ", hsaco, phoff + i * phentsize
        )
        if typ == 1:
            if len(image) < va + msz:
                image.extend(b"\0" * (va + msz - len(image)))
            image[va : va + fsz] = hsaco[off : off + fsz]
        if typ == 4:
            notes = hsaco[off : off + fsz]
    sh = [struct.unpack_from("<IIQQQQIIQQ", hsaco, shoff + i * shentsize) for i in range(shnum)]
    syms = {}
    for s in sh:
        if s[1] not in (2, 11):
            continue  # SYMTAB, DYNSYM
        stroff = sh[s[6]][4]
        for j in range(s[5] // 24):
            nm, info, _other, shndx, val, sz = struct.unpack_from("<IBBHQQ", hsaco, s[4] + j * 24)
            name = hsaco[stroff + nm : hsaco.index(b"\0", stroff + nm)].decode()
            if name and shndx:
                syms[name] = (val, sz)
    # relocations that matter for loaded code (absolute 64): Triton kernels normally have none
    for s in sh:
        if s[1] == 4 and s[5]:
            for j in range(s[5] // 24):
                off, info, _add = struct.unpack_from("<QQq", hsaco, s[4] + j * 24)
                raise NotImplementedError(f"dynamic relocation type {info & 0xFFFFFFFF}")
    meta, p = None, 0
    while notes and p < len(notes):
        nsz, dsz, typ = struct.unpack_from("<III", notes, p)
        p += 12
        name = notes[p : p + nsz]
        p += (nsz + 3) & ~3
        desc = notes[p : p + dsz]
        p += (dsz + 3) & ~3
        if typ == 32 and name.startswith(b"AMDGPU"):
            meta = unpackb(desc)
    kernels = {}
    for k in meta["amdhsa.kernels"]:
        va, _ = syms[k[".symbol"]]
        kd = parse_kd(bytes(image[va : va + 64]), va)
        kernels[k[".name"]] = Kernel(k[".name"], kd["entry"], kd, k, k.get(".args", []))
    return CodeObject(image, kernels, meta.get("amdhsa.target", ""), syms)
