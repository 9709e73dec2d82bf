"""Which upstream run a job begins with, and that the weights at the start are a part of what it is."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lightning_modules.training import Job


def job(tmp_path, seed=1, start=None):
    dataset, sources = tmp_path / "data", tmp_path / "sources.json"
    dataset.mkdir(exist_ok=True)
    (dataset / "card.json").write_text("{}")
    sources.write_text("{}")
    return Job({"system": {}}, "pretrain", "student", "paper", "tiny", seed, dataset, sources, start)


def upstream(tmp_path, *seeds):
    folder = tmp_path / "teacher" / "pretrain"
    for seed in seeds:
        run = folder / f"seed-{seed}"
        run.mkdir(parents=True)
        save_file({"weight": torch.full((1,), float(seed))}, run / "weights.safetensors")
        (run / "facts.json").write_text(json.dumps({"seed": seed}))
    return folder


def test_a_job_begins_with_the_run_of_its_seed_or_with_the_only_one(tmp_path):
    assert job(tmp_path).upstream is None
    assert job(tmp_path, seed=1, start=upstream(tmp_path / "three", 0, 1, 2)).upstream.name == "seed-1"
    assert job(tmp_path, seed=1, start=upstream(tmp_path / "one", 0)).upstream.name == "seed-0"
    with pytest.raises(ValueError, match="expected seed-1 or a single one"):
        assert job(tmp_path, seed=1, start=upstream(tmp_path / "two", 0, 2)).upstream


def test_other_weights_at_the_start_are_another_job(tmp_path):
    starts = None, upstream(tmp_path / "a", 0), upstream(tmp_path / "b", 5)
    assert len({job(tmp_path, start=start).fingerprint for start in starts}) == 3
