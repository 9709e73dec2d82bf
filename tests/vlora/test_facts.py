"""What the facts say about the presets is what the presets do, and the counts are those of what they name."""

from pathlib import Path

import pytest
import yaml

from lightning_modules.metrics.claims import load_facts
from lightning_modules.vlora.benchmarks import SCORES
from stages.composing import compose

ROOT = Path(__file__).parents[2]
FACTS = load_facts(ROOT / "lightning_modules/vlora/facts.yaml")
DIFFERENCES = "\n".join(FACTS.differences)
NAMES = {
    "mmbench": "MMBench", "mme": "MME", "scienceqa": "ScienceQA", "hallusionbench": "HallusionBench", "mmmu": "MMMU",
    "ccbench": "CCBench",
}  # fmt: skip


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


def test_conversations_are_learnt_whole_where_the_differences_say_so():
    paper, tiny = (compose(preset, system="vlora")["system"]["data"]["form"] for preset in ("paper", "tiny"))
    assert paper["turn"] and tiny["turn"] is None
    assert "In the paper preset all answers of a conversation are learnt in one text" in DIFFERENCES
    assert not any(
        old in DIFFERENCES for old in ("learnt apart", "are left out and counted", "not asked by the pipeline")
    )
