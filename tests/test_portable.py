"""Code paths are held at AVX2 in every process that computes, and what made a number is told."""

import os
import subprocess
import sys

import pytest

from lightning_modules import portable
from tests.pipeline import ROOT

needed = pytest.mark.skipif(not portable.possible(), reason="Linux on an x86-64 processor with AVX2")
MADE_BY = "import stages; from lightning_modules.portable import made_by; print(made_by()['processor'])"


def python(code, **environment):
    """What a fresh interpreter prints, or the end of its error."""
    bare = {name: value for name, value in os.environ.items() if name not in portable.CAPS}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=bare | environment, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@needed
def test_a_stage_is_capped_whatever_was_set_before():
    assert python(MADE_BY) == "AVX2"
    assert python(MADE_BY, MKL_CBWR="COMPATIBLE", ATEN_CPU_CAPABILITY="default") == "AVX2"


@pytest.mark.parametrize("setting", [{"REPRISE_NATIVE": "1"}, {"REPRISE_TRAINER": "gpu"}])
def test_native_code_paths_name_the_processor(setting):
    assert python(MADE_BY, **setting).endswith(f"({portable.processor()})")


@needed
def test_torch_imported_too_early_is_an_error_that_says_what_to_do():
    message = python("import torch, stages")
    assert message.startswith("RuntimeError: numpy and torch was imported") or "import `stages` first" in message
    assert "REPRISE_NATIVE=1" in message


@needed
def test_only_numpy_with_avx2_is_left():
    features = "from numpy._core._multiarray_umath import __cpu_dispatch__ as d, __cpu_features__ as f"
    assert python(f"import stages; {features}; print([name for name in d if f[name]])") == "['X86_V3']"


@needed
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_are_capped(method):
    code = (
        "import multiprocessing, stages\nfrom lightning_modules.portable import made_by\n"
        f"context = multiprocessing.get_context('{method}')\n"
        "if context.get_start_method() == 'forkserver': context.set_forkserver_preload(['torch'])\n"
        "with context.Pool(1) as pool: print(pool.apply(made_by)['processor'])"
    )
    assert python(code) == "AVX2"
