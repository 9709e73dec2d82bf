"""A trained model is asked the questions of a benchmark, and its answers become the scores of that benchmark."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningDataModule

from lightning_modules import settings
from lightning_modules.datasets import question_tables
from lightning_modules.runs import Run
from lightning_modules.vlora import benchmarks
from lightning_modules.vlora.answering import Answering
from stages.composing import compose

PARTS = {
    "mmbench": {"accuracy_percent", "plain_percent"}, "ccbench": {"accuracy_percent"},
    "scienceqa": {"accuracy_percent"},
    "mme": {"perception", "cognition"}, "hallusionbench": {"aAcc", "fAcc", "qAcc", "overall"},
    "mmmu": {"accuracy_percent", "accuracy_percent/existence"},
}  # fmt: skip


def built():
    torch.manual_seed(0)
    config = compose("tiny", system="vlora_benchmark", overrides={"model.most": 4})["system"]
    model = settings.bind(config["model"], "model")()
    model.given = True
    return model, config["data"]


def prepared(folder, benchmark):
    stood_in = question_tables.stand_in(folder, rows=4, benchmark=benchmark, file="bench.tsv")
    question_tables.prepare(folder / "new", benchmark=benchmark, file="bench.tsv", **stood_in.config)
    return folder / "new"


@pytest.mark.parametrize("benchmark", PARTS)
def test_answers_to_a_benchmark_have_its_scores(tmp_path, benchmark):
    model, config = built()
    data = settings.bind(config, "data", folder=prepared(tmp_path, benchmark), seed=0)()
    model.check_data(data)
    found = model.predictions(data, torch.device("cpu"))
    assert len(found["answer/written"]) == len(found["answer/table"]) == 4

    class Finished(Run):
        facts = model.facts()

        def predictions(self):
            return {name: x.numpy() for name, x in found.items()}

    result = benchmarks.evaluate([Finished(Path(), 7)], benchmark)
    assert {f"{benchmark}/{name}" for name in PARTS[benchmark]} <= result.metrics[7].keys()
    (tmp_path / "answers.tsv").write_bytes(result.files["answers.tsv"])
    questions = question_tables.read_questions(tmp_path / "bench.tsv")
    said = benchmarks.read_answers(tmp_path / "answers.tsv", questions)
    assert benchmarks.SCORES[benchmark](questions, said).keys() <= {
        name.removeprefix(f"{benchmark}/") for name in result.metrics[7]
    }


def test_right_answers_get_all_points(tmp_path):
    """Whatever a model is, it is its words that are scored."""
    questions = question_tables.read_questions(prepared(tmp_path, "mme").parent / "bench.tsv")
    assert benchmarks.mme(questions, ["Yes"] * 4)["perception"] == 200


def test_it_starts_from_the_arm_that_learnt_and_says_what_that_says():
    model, _ = built()
    torch.nn.init.constant_(model.seeing.bridge.learned["q"], 0.1)
    asked, _ = built()
    asked.start_from(model.export())
    assert all(torch.equal(x, asked.export()[name]) for name, x in model.export().items())
    assert isinstance(asked, Answering)


def test_other_data_are_refused(tmp_path):
    model, config = built()
    folder = prepared(tmp_path, "mmmu")
    card = folder / "card.json"
    card.write_text(card.read_text().replace('"table"', '"tables"'))
    with pytest.raises(ValueError, match="expected a table of a benchmark"):
        model.check_data(settings.bind(config, "data", folder=folder, seed=0)())
    with pytest.raises(ValueError, match="there is no run"):
        benchmarks.evaluate([], "mme")
    with pytest.raises(ValueError, match=r"data are LightningDataModule, expected datamodules\.illustrated"):
        model.check_data(LightningDataModule())
