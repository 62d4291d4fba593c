"""The machine that is measured: the kind of its processor, under which its figures are kept, and
the rate at which it reads memory."""

import os
from pathlib import Path

from peers import Failed, run

HERE = Path(__file__).resolve().parent
ISAS = "avx2 fma f16c avx_vnni avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16".split()
ISAS += "asimd asimddp i8mm sve".split()
# Microarchitectures by vendor, family and ranges of models, from the vendors' lists of CPUID
# signatures. A processor that is missing is named by these numbers.
MICROARCHITECTURES = [
    ("AuthenticAMD", 23, (0x00, 0x2F), "zen1"),
    ("AuthenticAMD", 23, (0x30, 0xFF), "zen2"),
    ("AuthenticAMD", 25, (0x00, 0x0F), "zen3"),
    ("AuthenticAMD", 25, (0x10, 0x1F), "zen4"),
    ("AuthenticAMD", 25, (0x20, 0x5F), "zen3"),
    ("AuthenticAMD", 25, (0x60, 0xAF), "zen4"),
    ("AuthenticAMD", 26, (0x00, 0xFF), "zen5"),
    ("GenuineIntel", 6, (0x55, 0x55), "skylake-sp"),
    ("GenuineIntel", 6, (0x6A, 0x6C), "ice-lake-sp"),
    ("GenuineIntel", 6, (0x8F, 0x8F), "sapphire-rapids"),
    ("GenuineIntel", 6, (0xCF, 0xCF), "emerald-rapids"),
    ("GenuineIntel", 6, (0xAD, 0xAE), "granite-rapids"),
]


def cpuinfo():
    """The first processor's fields; empty where the system has no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def kind(fields, isa):
    """The key of the table that the figures belong to, as `zen4-avx512-vnni`: figures of two kinds
    are never compared. `isa` is what Ponder uses."""
    vendor = fields.get("vendor_id") or fields.get("CPU implementer") or "unknown"
    family = int(fields.get("cpu family", -1))
    model = int(fields.get("model", -1))
    for known, of, (first, last), name in MICROARCHITECTURES:
        if (vendor, family) == (known, of) and first <= model <= last:
            return f"{name}-{isa}"
    return f"{vendor.lower()}-{family}-{model}-{isa}"


def read_rate(work, threads):
    """Bytes a second that `threads` threads read from memory: the best of several passes over
    buffers that no cache holds. Needs a C compiler."""
    program = work / "read_rate"
    source = HERE / "read_rate.c"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        compiler = os.environ.get("CC", "cc")
        run([compiler, "-O3", "-march=native", "-pthread", source, "-o", program])
    return float(run([program, threads], timeout=60))


def describe(work, threads, isa):
    fields = cpuinfo()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    facts = {
        "kind": kind(fields, isa),
        "processor": fields.get("model name", "unknown processor"),
        "isa": [flag for flag in ISAS if flag in flags],
        "ponder_isa": isa,
        "cores": os.cpu_count(),
        "threads": threads,
    }
    try:
        facts["read_gb_s"] = read_rate(work, threads) / 1e9
    except (Failed, ValueError) as failure:
        facts["read_rate_failed"] = str(failure)
    return facts
