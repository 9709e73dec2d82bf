"""The same numbers on every x86-64 processor: code paths restricted to AVX2, and a record of what made a number.

torch, numpy and the libraries in them choose their code by the processor, and different code rounds differently. `cap`
restricts them to AVX2, which Intel processors have had since 2013 (Haswell) and AMD ones since 2015. It must be called
before they are imported, so this module imports none of them.
"""

import ctypes
import importlib.abc
import importlib.util
import os
import platform
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

CAPS = {
    "ATEN_CPU_CAPABILITY": "avx2",  # torch's own loops, and torch.randn
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions
    "MKL_CBWR": "AVX2,STRICT",  # matrix products of torch, and exp, log, erf, erfinv: see `hold_mkl`
    "OPENBLAS_CORETYPE": "Haswell",  # matrix products of numpy and scipy
    "NPY_ENABLE_CPU_FEATURES": "X86_V3",  # numpy's own loops; X86_V3 is AVX2 with FMA
    "OMP_NUM_THREADS": "1",  # the parts of a sum depend on the number of threads, and so on that of cores
}
"""What is set in the environment, and so reaches child processes as well."""

MKL_ALL, MKL_AVX2_STRICT = -1, 0x1000A  # of mkl_cbwr_get: what is asked, and the answer for AVX2 and STRICT
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

    Values that were set before are replaced. A server that forks (`multiprocessing.forkserver`) must preload `stages`
    before torch, and so holds what it forks.

    Raises:
        RuntimeError: torch or numpy was imported before, without the caps.
    """
    if not wanted() or not possible():
        return
    early = sorted({"torch", "numpy"} & sys.modules.keys())
    if early and not CAPS.items() <= os.environ.items():
        raise RuntimeError(
            f"{early[0]} was imported before its code paths were held at AVX2: import `stages` first, or set "
            "REPRISE_NATIVE=1; numbers will then be those of this processor only"
        )
    os.environ.update(CAPS)
    if "torch" in sys.modules:
        hold_mkl()
    elif not any(isinstance(finder, _Torch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Torch())


def hold_mkl() -> None:
    """Make MKL obey `MKL_CBWR=AVX2,STRICT` on processors of all makers; nothing happens where it does already.

    On processors not made by Intel, MKL ignores every value but COMPATIBLE (SSE2), which makes training 1.6 times
    slower. It asks for the maker once and keeps the answer, in a variable that `mkl_serv_intel_cpu_true` begins by
    reading. With "Intel" in it, MKL runs the same code everywhere.
    """
    mkl = _mkl()
    if mkl is None:
        return
    start = ctypes.cast(mkl.mkl_serv_intel_cpu_true, ctypes.c_void_p).value
    instruction = ctypes.string_at(start, 6)
    if instruction[:2] == b"\x8b\x05":  # mov eax, [the address after this instruction + offset]
        offset = int.from_bytes(instruction[2:], "little", signed=True)
        ctypes.c_int.from_address(start + len(instruction) + offset).value = 1


def mkl_held() -> bool:
    """Whether the MKL in torch says that it runs its code for AVX2, strictly; true where torch has no MKL."""
    mkl = _mkl()
    return mkl is None or mkl.mkl_serv_cbwr_get(MKL_ALL) == MKL_AVX2_STRICT


def _mkl() -> ctypes.CDLL | None:
    """The library that holds torch's MKL."""
    import torch

    mkl = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    return mkl if hasattr(mkl, "mkl_serv_intel_cpu_true") else None


class _Torch(importlib.abc.MetaPathFinder):
    """Lets others find torch, and holds its MKL as soon as it is imported.

    It stays until then: others ask whether there is a torch without importing it (`importlib.util.find_spec`).
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_hold(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            hold_mkl()

        spec.loader.exec_module = execute_and_hold
        return spec


def made_by() -> dict[str, str | dict[str, str]]:
    """What can change a number besides configuration, data and code, for a fingerprint and for the page.

    `processor` is "AVX2" while all caps hold: then the numbers are those of any x86-64 processor. Otherwise it says
    what torch sees and which processor this is, since the numbers are those of that processor only.
    """
    import numpy
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    capped = CAPS.items() <= os.environ.items() and capability == "AVX2" and mkl_held()
    return {
        "processor": capability if capped else f"{capability} ({processor()})",
        "caps": {name: os.environ[name] for name in CAPS if name in os.environ},
        "python": platform.python_version(),
        "libc": "-".join(platform.libc_ver()),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        **_libraries(torch.__config__.show()),
    }


def kind() -> str:
    """Maker and widest vectors of the processor, such as `GenuineIntel AVX-512`: what code could be chosen by."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return platform.machine()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {name.strip(): value.split() for name, _, value in (line.partition(":") for line in lines)}
    vectors = next((told for flag, told in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in found["flags"]), "SSE")
    return f"{found['vendor_id'][0]} {vectors}"


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
