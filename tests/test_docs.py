"""The guides of the papers: their files and commands exist, and what they tell a user to type works."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_modules.datasets.video.drawn import encode
from tests.conftest import STEMS
from tests.pipeline import ROOT, Copy

SMALL = {  # paper -> stage -> arm that its guide uses -> overrides that make it small
    "maskalign": {
        "pretrain": {"maskalign-teacher": {"pretrain.epochs": 1}},
        "pretrain_from": {"maskalign": {"pretrain.epochs": 1}},
        "finetune": {"maskalign-world": {"downstream.finetune.epochs": 1, "downstream.probe.epochs": 1}},
        "evaluate": {"maskalign-world_graded": {}},
    },
    "clip_vip": {
        "pretrain": {"clip_vip-clip": {"pretrain.epochs": 1}},
        "pretrain_from": {"clip_vip": {"pretrain.epochs": 1}},
        "finetune": {"clip_vip-video": {"downstream.finetune.epochs": 1}},
        "evaluate": {"clip_vip-world_video_text": {}},
    },
    "unified_t2i_i2t": {
        "pretrain": {
            "unified-images": {
                "pretrain.epochs": 2,
                "model.reading_epochs": 1,
                "data.splits": {"train": {"source": "train", "rows": 512}},
            }
        },
        "pretrain_from": {"unified_t2i_i2t": {"pretrain.epochs": 1}},
        "finetune": {},
        "evaluate": {"unified_t2i_i2t": {}},
    },
    "movinet": {
        "pretrain": {"movinet-causal": {"pretrain.epochs": 1}},
        "pretrain_from": {},
        "finetune": {},
        "evaluate": {"movinet-causal": {}},
    },
    "hd_vila": {
        "pretrain": {"hd_vila": {"pretrain.epochs": 1}, "hd_vila-high": {"pretrain.epochs": 1}},
        "pretrain_from": {"hd_vila-manipulation": {"pretrain.epochs": 1}},
        "finetune": {},
        "evaluate": {"hd_vila": {}, "hd_vila-manipulation": {}},
    },
    "magvit": {
        "pretrain": {"magvit-2d": {"pretrain.epochs": 1}},
        "pretrain_from": {"magvit-tokenizer": {"pretrain.epochs": 1}, "magvit": {"pretrain.epochs": 1}},
        "finetune": {},
        "evaluate": {"magvit-tokenizer": {}, "magvit": {}},
    },
    "magvit2": {
        "pretrain": {"magvit2-tokenizer": {"pretrain.epochs": 1}},
        "pretrain_from": {"magvit2": {"pretrain.epochs": 1}, "magvit2-actions": {"pretrain.epochs": 1}},
        "finetune": {},
        "evaluate": {"magvit2-tokenizer": {}, "magvit2": {}, "magvit2-actions": {}},
    },
    "spae": {
        "pretrain": {"spae-language": {"pretrain.epochs": 1}},
        "pretrain_from": {
            "spae-clip": {"pretrain.epochs": 1},
            "spae": {"pretrain.epochs": 1},
            "spae-in_context": {},
        },
        "finetune": {},
        "evaluate": {"spae": {}, "spae-in_context": {}},
    },
    "videopoet": {
        "pretrain": {"videopoet-audio": {"pretrain.epochs": 1}},
        "pretrain_from": {"videopoet-tokenizer": {"pretrain.epochs": 1}, "videopoet": {"pretrain.epochs": 1}},
        "finetune": {},
        "evaluate": {"videopoet": {}},
    },
    "camvig": {
        "pretrain": {"camvig-tokenizer": {"pretrain.epochs": 1}},
        "pretrain_from": {"camvig-base": {"pretrain.epochs": 1}, "camvig": {"pretrain.epochs": 1}},
        "finetune": {},
        "evaluate": {"camvig": {}},
    },
    "vlora": {
        "pretrain": {"caption-language": {"pretrain.epochs": 1}},
        "pretrain_from": {"caption-tower": {"pretrain.epochs": 1}, "vlora": {"pretrain.epochs": 1}},
        "finetune": {},
        "evaluate": {"vlora": {}},
    },
    "mm_gem": {
        "pretrain": {"caption-language": {"pretrain.epochs": 1}},
        "pretrain_from": {
            "caption-tower": {"pretrain.epochs": 1},
            "mm_gem": {"pretrain.epochs": 1},
            "mm_gem-regions": {"pretrain.epochs": 1},
        },
        "finetune": {},
        "evaluate": {"mm_gem": {}, "mm_gem-regions": {}},
    },
    "lf_vila": {
        "pretrain": {"lf_vila": {"pretrain.epochs": 1}},
        "pretrain_from": {},
        "finetune": {},
        "evaluate": {"lf_vila": {}},
    },
    "vit_bert": {
        "pretrain": {"vit_bert-separate": {"data.steps": 8, "pretrain.validate_every": None}},
        "pretrain_from": {"vit_bert": {"data.steps": 8, "pretrain.validate_every": None}},
        "finetune": {
            f"vit_bert-{protocol}": {
                f"downstream.{protocol}.data.steps": 4,
                f"downstream.{protocol}.validate_every": None,
            }
            for protocol in ("images", "texts")
        },
        "evaluate": {"vit_bert": {}, "vit_bert-images": {}, "vit_bert-texts": {}},
    },
    "fgla": {
        "pretrain": {"fgla": {"pretrain.epochs": 1}},
        "pretrain_from": {},
        "finetune": {},
        "evaluate": {"fgla": {}},
    },
    "imp": {
        "pretrain": {"imp": {"data.steps": 8, "pretrain.validate_every": None}},
        "pretrain_from": {},
        "finetune": {},
        "evaluate": {"imp": {}},
    },
    "visual_parsing": {
        "pretrain": {"visual_parsing": {"pretrain.epochs": 1, "pretrain.validate_every": None}},
        "pretrain_from": {},
        "finetune": {
            "visual_parsing-questions": {"downstream.questions.epochs": 1, "downstream.questions.validate_every": None},
            "visual_parsing-statements": {
                f"downstream.{protocol}.{name}": value
                for protocol in ("entailment", "pairs")
                for name, value in (("epochs", 1), ("validate_every", None))
            },
        },
        "evaluate": {"visual_parsing": {}, "visual_parsing-questions": {}, "visual_parsing-statements": {}},
    },
}


def guide(stem):
    return (ROOT / f"docs/papers/{stem}.md").read_text()


def section(name):
    return (ROOT / "README.md").read_text().split(f"\n## {name}\n")[1].split("\n## ")[0]


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


# What README tells to type about the papers of a project: bash, Python. A server would not end; without DRY_RUN, 600
# trials would take an hour.
DVC, PREDICT, EXPORT = blocks(section("Use"), "bash")
SWEEP = re.sub("^make dashboard .*$", "", *blocks(section("On many machines"), "bash"), flags=re.MULTILINE)
TOLD = {
    "committees": ([PREDICT, DVC, f"export DRY_RUN=1\n{SWEEP}"], []),
    "maskalign": ([EXPORT], []),
    "clip_vip": (blocks(section("Use as a library"), "bash"), blocks(section("Use as a library"), "python")),
}


@pytest.mark.parametrize("stem", [stem for stem in STEMS if (ROOT / f"plans/tiny/{stem}").is_dir()])
def test_every_paper_has_a_guide_whose_files_and_commands_exist(stem):
    text = guide(stem)
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        "What the paper says", "What is here", "Run it", "Use the model", "Export",
    ]  # fmt: skip
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / "docs/papers" / link).exists(), link
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
    for size in ("", "PRESET=paper "):
        assert f"make repro {size}PAPER={stem}" in text
    for folder in re.findall(r"data/results/(\w+/\w+/[\w-]+)", text):
        preset, paper, arm = folder.split("/")
        assert arm in yaml.safe_load((ROOT / f"plans/{preset}/{paper}/params.yaml").read_text())["evaluate"]
    assert f"(docs/papers/{stem}.md)" in (ROOT / "README.md").read_text()


def small_rows(stem):
    """Rows of the arms, which may be those of other papers, and the drawn data that they need."""
    plans = {path.parent.name: yaml.safe_load(path.read_text()) for path in ROOT.glob("plans/tiny/*/params.yaml")}
    plan, rows = plans[stem], {"sweep": {}}
    for stage, arms in SMALL[stem].items():
        rows[stage] = {arm: next(each[stage][arm] for each in plans.values() if arm in each[stage]) for arm in arms}
        for arm, overrides in arms.items():
            if overrides:
                rows[stage][arm]["overrides"] = {**rows[stage][arm].get("overrides", {}), **overrides}
    used = {row["dataset"] for arms in rows.values() for row in arms.values() if "dataset" in row}
    return rows, sorted(name for name in {*plan["datasets"], *used} if name.startswith("world"))


@pytest.fixture(scope="module", params=[*SMALL, "digits"])
def project(request, tmp_path_factory):
    """A trained small project, its papers, and beside it the files that the guides speak of."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "digits":
        copy, papers = Copy(folder, seeds=[0]), ["committees", "small_ensembles"]
    else:
        rows, datasets = small_rows(request.param)
        copy, papers = Copy(folder, seeds=[0], rows=rows, datasets=datasets, paper=request.param), [request.param]
    copy.python("-m", "stages.repro", "evaluate")
    rng = np.random.default_rng(0)
    for name in ("my-picture.png", "my-digit.png", "my-pictures/a.png", "my-pictures/b.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / name)
    encode(folder / "my-videos/first.mp4", 8)
    encode(folder / "my-videos/second.mp4", 8)
    encode(folder / "my-video.mp4", 8)
    for name in ("sentences.txt", "captions.txt"):
        (folder / name).write_text("a large red circle\na small blue square\n")
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(Path(sys.prefix))
    return copy, papers


@pytest.mark.guides
def test_what_a_guide_tells_a_user_to_type_works(project):
    copy, papers = project
    for stem in papers:
        commands, programs = TOLD.get(stem, ([], []))
        (code,) = blocks(guide(stem), "python")
        for block in [*blocks(guide(stem), "bash"), *commands]:
            assert copy.run("bash", "-ec", block).stdout
        for program in [code, *programs]:
            assert copy.python("-c", program).stdout or "features" in program
    made = {str(path.relative_to(copy.folder)) for path in copy.folder.rglob("*")}
    if papers == ["maskalign"]:
        assert "features/0-my-picture-features.npy" in made
        assert {"my-encoder/model.safetensors", "my-classifier/config.json"} <= made
    if papers == ["unified_t2i_i2t"]:
        assert {"drawn/1-captions-0-picture.png", "drawn/1-captions-1-picture.png", "drawn-1.png"} <= made
        run = copy.python("-m", "stages.export", "unified_t2i_i2t", "no", check=False)
        assert run.returncode == 1 and "cannot be exported: transformers has LXMERT, but" in run.stderr
    if papers == ["mm_gem"]:
        assert {"my-language/model.safetensors", "my-language/tokenizer.json"} <= made
    if papers == ["clip_vip"]:
        assert "my-clip/README.md" in made
        run = copy.python("-m", "stages.export", "clip_vip", "no", check=False)
        assert run.returncode == 1 and "CLIPModel has no place for the" in run.stderr and "no" not in made
