"""What made a number besides configuration, data and code."""

import os
import platform


def made_by() -> dict[str, str]:
    """The processor's capability as torch sees it, and the versions that can change a number."""
    import numpy
    import torch

    return {
        "processor": torch.backends.cpu.get_cpu_capability(),
        "caps": os.environ.get("ATEN_CPU_CAPABILITY", ""),
        "python": platform.python_version(),
        "libc": "-".join(platform.libc_ver()),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
