"""Code paths are held at AVX2 in every process that computes, and operations give the bytes that are written down."""

import json
import os
import subprocess
import sys

import pytest

from lightning_modules import portable
from tests.pipeline import ROOT

needed = pytest.mark.skipif(not portable.possible(), reason="Linux on an x86-64 processor with AVX2")
SEEN = {"AuthenticAMD AVX2"}  # kinds of processors on which the bytes were found to be those that are written down
CHILDREN = """
import json, multiprocessing, stages
from lightning_modules.portable import made_by
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
found = {"self": made_by(), "numpy": [name for name in __cpu_dispatch__ if __cpu_features__[name]]}
for method in ("fork", "forkserver"):
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["stages", "torch"])
    with context.Pool(1) as pool:
        found[method] = pool.apply(made_by)
print(json.dumps(found))
"""


def python(code, **environment):
    """What a fresh interpreter prints, or the last line of its error."""
    bare = {name: value for name, value in os.environ.items() if name not in portable.CAPS}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=bare | environment, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@needed
def test_a_stage_and_its_children_are_capped_whatever_was_set_before():
    found = json.loads(python(CHILDREN, MKL_CBWR="COMPATIBLE", ATEN_CPU_CAPABILITY="default", OMP_NUM_THREADS="2"))
    assert found["numpy"] == ["X86_V3"]
    assert found["self"]["processor"] == "AVX2"  # MKL's own word for it among the rest
    assert found["self"]["caps"] == portable.CAPS
    assert found["fork"] == found["forkserver"] == found["self"]


@needed
@pytest.mark.parametrize("first", ["importlib.util.find_spec('torch')", "import transformers"])
def test_mkl_is_held_although_others_have_looked_for_torch_before(first):
    code = f"import importlib.util, sys, stages; {first}; import torch; from lightning_modules import portable; "
    code += "print(portable.mkl_held(), any(isinstance(finder, portable._Torch) for finder in sys.meta_path))"
    assert python(code) == "True False"


def test_native_code_paths_name_the_processor():
    made_by = json.loads(
        python(
            "import json, stages; from lightning_modules.portable import made_by; print(json.dumps(made_by()))",
            REPRISE_NATIVE="1",
        )
    )
    assert made_by["processor"].endswith(f"({portable.processor()})")
    assert made_by["caps"] == {}


def test_only_the_cpu_trainer_is_capped(monkeypatch):
    monkeypatch.delenv("REPRISE_NATIVE", raising=False)
    for trainer, wanted in (("cpu", True), ("gpu", False), ("slurm", False)):
        monkeypatch.setenv("REPRISE_TRAINER", trainer)
        assert portable.wanted() == wanted


@needed
def test_numpy_imported_too_early_is_an_error_that_says_what_to_do():
    message = python("import numpy, stages")
    assert message.startswith("RuntimeError: numpy was imported before")
    assert "import `stages` first" in message and "REPRISE_NATIVE=1" in message


def test_what_is_told_of_torch_and_its_libraries():
    told = portable.made_by()
    assert told["torch"].startswith("2.") and told["numpy"] and told["python"]
    assert portable._libraries(
        "Intel(R) oneAPI Math Kernel Library Version 2024.2-Product Build 2\nMKL-DNN v3.12.0 ("
    ) == {
        "mkl": "2024.2-Product",
        "onednn": "3.12.0",
    }
    assert portable._libraries("no such line") == {"mkl": "none", "onednn": "none"}


@needed
@pytest.mark.skipif(not portable.wanted(), reason="code paths are not held")
def test_each_operation_gives_the_bytes_that_are_written_down():
    """`REPRISE_GOLDEN=write` writes them anew, after an update of torch, numpy or scipy."""
    from tests.portable import GOLDEN, digests

    found = digests()
    if os.environ.get("REPRISE_GOLDEN") == "write":
        GOLDEN.write_text("".join(f"{name} {value}\n" for name, value in found.items()))
    expected = dict(line.split() for line in GOLDEN.read_text().splitlines())
    assert found.keys() == expected.keys()
    differ = [name for name in expected if found[name] != expected[name]]
    message = f"{portable.processor()} ({portable.kind()}): other bytes in {', '.join(differ)}"
    if differ and portable.kind() not in SEEN:
        pytest.skip(f"{message}: find the way round it (CONTRIBUTING.md), or results are made anew on this processor")
    assert not differ, message
