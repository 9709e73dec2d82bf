"""What the facts say about the presets is what the presets do, and the counts are those of what they name."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_modules.metrics.claims import load_facts
from lightning_modules.metrics.compute import count_macs, count_parameters
from lightning_modules.vlora.baselines import Projector
from lightning_modules.vlora.benchmarks import SCORES
from lightning_modules.vlora.costs import (
    Sizes,
    generator_macs,
    gflops,
    language_macs,
    projector_macs,
    with_bridges,
    without_visual_tokens,
)
from lightning_modules.vlora.generator import PerceptualWeights
from stages.composing import compose

ROOT = Path(__file__).parents[2]
FACTS = load_facts(ROOT / "lightning_modules/vlora/facts.yaml")
DIFFERENCES = "\n".join(FACTS.differences)
NAMES = {
    "mmbench": "MMBench", "mme": "MME", "scienceqa": "ScienceQA", "hallusionbench": "HallusionBench", "mmmu": "MMMU",
    "ccbench": "CCBench",
}  # fmt: skip

ORACLES = {oracle.name: oracle.model_extra for oracle in FACTS.oracles}
GENERATORS = {
    "generator-512": {}, "generator-1024": {"dim": 1024}, "generator-512-shared": {"separate": False},
    "generator-1024-shared": {"dim": 1024, "separate": False},
    **{f"generator-512-rank-{rank}": {"rank": rank} for rank in (16, 32, 128)},
    **{f"generator-512-{kinds}": {"kinds": kinds} for kinds in ("q", "qk", "qkv", "qkvo")},
    **{f"generator-512-skip-{skip}": {"skip": skip} for skip in (1, 2, 8)},
}  # fmt: skip


def generator(options):
    with torch.device("meta"):
        return PerceptualWeights(
            sizes=dict.fromkeys("qkvom", (4096, 4096)), layers=32, visual_dim=1024, patches=576, **options
        )


def test_every_generator_of_the_facts_is_built():
    named = {
        name for name, found in ORACLES.items() if name.startswith("generator-5") or name.startswith("generator-1")
    }
    assert {name for name in named if "parameters" in ORACLES[name]} == GENERATORS.keys()


@pytest.mark.parametrize("name", GENERATORS)
def test_parameters_of_generators_are_counted(name):
    assert count_parameters(generator(GENERATORS[name])) == ORACLES[name]["parameters"]


@pytest.mark.parametrize("dim", [512, 1024])
def test_products_of_a_generator_are_counted(dim):
    found = ORACLES[f"generator-{dim}-macs"]
    assert count_macs(generator({"dim": dim}), (576, 1024)) == generator_macs(Sizes(), dim=dim) == found["macs"]
    assert gflops(found["macs"]) == pytest.approx(found["gflops"], abs=0.05)


def test_products_of_the_projector_are_counted():
    with torch.device("meta"):
        made = Projector(visual_dim=1024, hidden_size=4096, inner=4096)
    found = ORACLES["projector-macs"]
    assert count_macs(made, (576, 1024)) == projector_macs(Sizes()) == found["macs"]
    assert gflops(found["macs"]) == pytest.approx(found["gflops"], abs=0.05)


@pytest.mark.parametrize("text", [32, 64, 128, 256, 512])
def test_costs_of_the_facts_are_those_of_the_closed_forms(text):
    found, sizes = ORACLES[f"gflops-{text}"], Sizes()
    assert gflops(language_macs(text + 576, sizes)) == pytest.approx(found["llava"], abs=0.05)
    assert gflops(language_macs(text, sizes)) == pytest.approx(found["vlora"], abs=0.05)
    assert without_visual_tokens(text, 576, sizes) == pytest.approx(found["ratio"], abs=5e-5)
    assert with_bridges(text, 576, sizes) == pytest.approx(found["ratio_with_bridges"], abs=5e-5)


def plan():
    return yaml.safe_load((ROOT / "plans/paper/vlora/params.yaml").read_text())


@pytest.mark.parametrize("benchmark", SCORES)
def test_the_questions_of_each_benchmark_are_asked_as_the_differences_say(benchmark):
    rows = plan()
    assert rows["pretrain_from"][f"vlora-{benchmark}"]["system"] == "vlora_benchmark"
    assert f"vlora-{benchmark}" in rows["evaluate"]
    (said,) = [line for line in FACTS.differences if "ask the questions" in line]
    assert NAMES[benchmark] in said
    asked = compose("paper", system="vlora_benchmark")["system"]
    assert f"{asked['model']['most']} tokens at most" in said
    assert "curious user" in asked["model"]["prompts"]["question"] and "a user where" in said


def test_the_arms_of_tables_2_to_5_are_asked_the_questions_of_mmbench():
    rows = plan()
    learnt = {arm: row for arm, row in rows["pretrain_from"].items() if row["system"] == "vlora"}
    assert len(learnt) == 13
    for arm, row in learnt.items():
        asked = rows["pretrain_from"][f"{arm}-mmbench"]
        assert (asked["from"], asked["dataset"], asked["system"]) == (arm, "mmbench", "vlora_benchmark")
        assert asked.get("overrides") == row.get("overrides"), "the network is the one that learnt"
        assert rows["evaluate"][f"{arm}-mmbench"]["runs"] == f"{arm}-mmbench"


def test_claims_about_the_paper_preset_are_judged_where_the_paper_judges():
    claims = [claim for claim in FACTS.claims if "paper" in claim.presets]
    assert [claim.id for claim in claims] == ["P1-mmbench", "P2-all", "P4-rise", "P4-fall"]
    for claim in claims:
        assert claim.value.metric == claim.reference.metric == "mmbench/accuracy_percent" and claim.post_hoc


def test_conversations_are_learnt_whole_where_the_differences_say_so():
    paper, tiny = (compose(preset, system="vlora")["system"]["data"]["form"] for preset in ("paper", "tiny"))
    assert paper["turn"] and tiny["turn"] is None
    assert "In the paper preset all answers of a conversation are learnt in one text" in DIFFERENCES
    assert not any(
        old in DIFFERENCES for old in ("learnt apart", "are left out and counted", "not asked by the pipeline")
    )
