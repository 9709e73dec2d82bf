"""The same numbers on every x86-64 processor: code paths held at AVX2, and a record of what made a number.

torch, numpy and the libraries in them choose their code by the processor, and different code rounds differently. `cap`
holds them at AVX2, which every x86-64 processor has since 2013 (Intel Haswell) and 2017 (AMD Zen). It must be called
before they are imported, so this module imports none of them.
"""

import os
import platform
import re
import sys
from pathlib import Path

CAPS = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own loops, and torch.randn
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "MKL_CBWR": "AVX2,STRICT",  # matrix products of torch
    "MKL_VML_DEBUG_CPU_TYPE": "3",  # exp, log, erf, erfinv and sqrt of torch: MKL's code for AVX2
    "OPENBLAS_CORETYPE": "Haswell",  # matrix products of numpy and scipy
    "NPY_ENABLE_CPU_FEATURES": "X86_V3",  # numpy's own loops; X86_V3 is AVX2 with FMA
}
"""What is set in the environment, and so reaches child processes as well."""

NEEDED = frozenset(("avx2", "fma", "bmi1", "bmi2", "abm", "movbe", "f16c"))  # numpy refuses X86_V3 without them


def wanted() -> bool:
    """Whether numbers should not depend on the processor: CPU trainer, and not `REPRISE_NATIVE=1`."""
    return os.environ.get("REPRISE_NATIVE") != "1" and os.environ.get("REPRISE_TRAINER", "cpu") == "cpu"


def possible() -> bool:
    """Whether this is Linux on an x86-64 processor with AVX2."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    flags = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    return NEEDED <= set(next(flags, "").split())


def cap() -> None:
    """Hold the code paths of this process and its children at AVX2, where that is wanted and possible.

    Values that were set before are replaced.

    Raises:
        RuntimeError: torch or numpy was imported before, without the caps.
    """
    if not wanted() or not possible() or CAPS.items() <= os.environ.items():
        return
    if early := sorted({"torch", "numpy"} & sys.modules.keys()):
        raise RuntimeError(
            f"{' and '.join(early)} was imported before the code paths were held at AVX2: import `stages` first, "
            "or set REPRISE_NATIVE=1, and numbers will be those of this processor only"
        )
    os.environ.update(CAPS)


def made_by() -> dict[str, str | dict[str, str]]:
    """What can change a number besides configuration, data and code, for a fingerprint and for the page.

    `processor` is "AVX2" while all caps hold: then the numbers are those of any x86-64 processor. Otherwise it says
    what torch sees and which processor this is, since the numbers are those of that processor only.
    """
    import numpy
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    capped = CAPS.items() <= os.environ.items() and capability == "AVX2"
    return {
        "processor": capability if capped else f"{capability} ({processor()})",
        "caps": {name: os.environ[name] for name in CAPS if name in os.environ},
        "python": platform.python_version(),
        "libc": "-".join(platform.libc_ver()),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        **_libraries(torch.__config__.show()),
    }


def processor() -> str:
    """Name of the processor, as the system gives it."""
    if sys.platform != "linux":
        return platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _libraries(build: str) -> dict[str, str]:
    """Versions of MKL and oneDNN from torch's description of its build."""
    patterns = {"mkl": r"Math Kernel Library Version (\S+)", "onednn": r"MKL-DNN v(\S+)"}
    found = {name: re.search(pattern, build) for name, pattern in patterns.items()}
    return {name: match[1] if match else "none" for name, match in found.items()}
