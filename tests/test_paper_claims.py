"""Claims of the preset `paper` read metrics that the evaluations write, from predictions as trained arms store them."""

import itertools
import json
import shutil

import numpy as np
import pytest

from lightning_modules import settings
from lightning_modules.files import ROOT
from lightning_modules.lf_vila.module import LENGTHS
from lightning_modules.metrics.claims import load_facts
from lightning_modules.metrics.video_published import NOT_COMPUTED
from lightning_modules.movinet.module import MEMORY_AT
from lightning_modules.runs import Run
from lightning_modules.video_tokens.tasks import TASKS
from lightning_modules.vision_language.told import encoded
from stages.claims import judge
from stages.composing import compose
from stages.evaluate import write_evaluation
from stages.plan import load_plan

PLAN = load_plan("paper")
ROWS, SEEDS = 6, (0, 1, 2)
SEEN_BY = {"fvd": "i3d", "inception_score": "c3d"}
FID = "torch-fidelity"


class Stored(Run):
    """A run whose files are given."""

    facts = None

    def __init__(self, facts, arrays, seed, name=""):
        self.__dict__.update(facts=facts, arrays=arrays, seed=seed, name=name)

    def predictions(self):
        return self.arrays


def system_of(row):
    return compose("paper", system=row.system, overrides=row.overrides, stage="evaluate", resolve=False)["system"]


def movinet(model, draw, published):
    """What an arm of MoViNet stores: its facts and its predictions."""
    classes, targets, causal = model["num_classes"], model["targets"], model["causal"]
    labels = {"one": np.zeros(ROWS, np.int64), "many": draw.integers(0, 2, (ROWS, classes))}
    arrays = {"logits/test": draw.normal(size=(ROWS, model["members"], classes))}
    arrays["labels/test"] = np.zeros((ROWS, 2), np.int64) if isinstance(targets, list) else labels[targets]
    if causal:
        arrays["each_frame/test"] = draw.normal(size=(ROWS, 3, classes))
        arrays["streamed/test"] = arrays["each_frame/test"][:2] + 1e-4
    facts = {"macs_per_clip": 10, "parameters": 3, "causal": causal, "stride": model["stride"]}
    facts["peak_bytes"] = {str(frames): 100 for frames in MEMORY_AT}
    return facts | ({"targets": targets} if isinstance(targets, list) else {}), arrays


def lf_vila(model, draw, published):
    """The same of LF-VILA."""
    facts = {"task": model["task"], "macs_per_video": 10, "parameters": 3}
    facts["attention_elements"] = {str(frames): frames for frames in LENGTHS}
    if model["task"] != "align":
        return facts, {"logits/test": draw.normal(size=(ROWS, 2)), "labels/test": np.zeros(ROWS, np.int64)}
    shapes = {"video": (ROWS, 4), "text": (ROWS, 4), "clips": (ROWS, 2, 4), "sentences": (ROWS, 2, 4)}
    return facts, {f"{name}/test": draw.normal(size=shape) for name, shape in shapes.items()}


def magvit(model, draw, published):
    """The same of MAGVIT's tokenizers and generators; `published`: with what I3D and C3D see."""

    def seen(*names):
        return {name: draw.normal(size=(ROWS, 2)) for name in names if published}

    def numbers(*names):
        return {name: draw.uniform(1, 2, ROWS) for name in names}

    facts = {"vocabulary": 8, "grid": [1, 2, 2], "pixels": 64, "passes": 12, "parameters": 3}
    arrays = {"shown/real": np.zeros((1, 2, 4, 4, 3), np.uint8)} | seen("i3d/real", "c3d/real")
    if "judged_tasks" not in model:
        arrays |= numbers("psnr", "ssim", "mse") | seen("i3d/drawn", "c3d/drawn")
        return facts, arrays | {"tokens": np.zeros((ROWS, 1, 2, 2), np.int64), "shown/drawn": arrays["shown/real"]}
    for task in model["judged_tasks"]:
        arrays |= numbers(*(f"{task}/{name}" for name in ("psnr", "mse", "ceiling", "copied")))
        arrays |= {f"{task}/right": draw.random((ROWS, 4)) < 0.5, f"shown/{task}/made": arrays["shown/real"]}
        if TASKS[task].condition is not None:
            arrays |= dict.fromkeys((f"{task}/where", f"{task}/differ"), np.ones((ROWS, 4), bool))
        arrays |= seen(f"{task}/i3d", f"{task}/c3d")
    return facts, arrays


def magvit2(model, draw, published):
    """The same of MAGVIT-v2's; and of classifiers."""
    if "source" in model:
        logits, actions = draw.normal(size=(ROWS, model["num_classes"])), np.zeros(ROWS, np.int64)
        return {"classes": model["num_classes"], "parameters": 3}, {"logits": logits, "actions": actions}
    if "codecs" in model:
        scores = ("psnr", "ms_ssim", *(["lpips"] if published else []))
        arrays = {"bits": np.full(ROWS, 20.0), "pixels": np.full(ROWS, 10)}
        arrays |= {name: draw.uniform(1, 2, ROWS) for name in scores}
        for codec in model["codecs"]:
            arrays[f"codecs/{codec}/bits"] = np.tile([10.0, 30.0], (ROWS, 1))
            arrays |= {f"codecs/{codec}/{name}": draw.uniform(1, 2, (ROWS, 2)) for name in scores}
        shown = dict.fromkeys(("shown/real", "shown/drawn"), np.zeros((1, 2, 4, 4, 3), np.uint8))
        return {"codecs": model["codecs"], "parameters": 3}, arrays | shown
    facts, arrays = magvit(model, draw, published)
    if (
        model["_target_"].rpartition(".")[2] in ("PictureTraining", "PictureGenerator", "ReleasedPictures")
        and published
    ):
        arrays |= {name: draw.uniform(1, 2, 1) for name in ("fid", "inception_score")}
    if "judged_tasks" in model:
        arrays |= {f"coded/{name}": draw.uniform(1, 2, ROWS) for name in ("bits", "written", "psnr", "ssim")}
        arrays |= {"coded/fixed": np.full(ROWS, 3.0), "coded/again": np.ones(ROWS, bool)}
    return facts | {"tokens": 4, "head_parameters": 5}, arrays


def spae(model, draw, published):
    """The same of SPAE's tokenizers, and of a frozen language model that reads and writes their words."""
    if "classifying" in model:
        asked, arrays, read = model["classifying"], {}, []
        for layers, ways, each in itertools.product(asked["layers"], asked["ways"], asked["settings"]):
            setting = f"{ways}_way_{each['shots']}_shot_{each['repeats']}_repeats{'_induced' * each['induced']}"
            read.append(f"{layers}_layers/{setting}")
            for kind in ("masked", "overlap", "exact"):
                arrays[f"few_shot/{read[-1]}/{kind}"] = draw.random(ROWS) < 0.5
        return {"tokens": [1, 4], "parameters": 3, "language_parameters": 5, "settings": read}, arrays
    layers = model["tokenizer"]["layers"]
    tokens = [layer**2 for layer in layers]
    arrays = {f"words/{layer}": draw.integers(0, 9, (ROWS, count)) for layer, count in enumerate(tokens, start=1)}
    for name in ("mse", "psnr", "ssim", "similarity", "fit"):
        arrays[name] = draw.uniform(0.1, 0.9, (ROWS, len(tokens)))
    arrays |= {"label/class": np.zeros(ROWS, np.int64), "spelled": np.full((9, 2), ord("a"), np.uint8)}
    arrays |= {"shown/real": np.zeros((1, 1, 4, 4, 3), np.uint8)}
    arrays |= {"shown/drawn": np.zeros((1, len(tokens), 1, 4, 4, 3), np.uint8)}
    return {"tokens": tokens, "vocabulary": 9, "pixels": 64, "parameters": 3}, arrays


def videopoet(model, draw, published):
    """The same of VideoPoet's language models and super-resolutions; of real clips no direction is known."""
    arrays = {"shown/real": np.zeros((1, 2, 4, 4, 3), np.uint8)}
    if "noise" in model:
        for way in ("true", "corrupted", "redrawn", "ceiling", "stretched"):
            arrays |= {f"{way}/{name}": draw.random(ROWS) for name in ("nll", "right", "mse", "psnr", "ssim")}
            arrays |= dict.fromkeys((f"shown/{way}", "shown/small"), arrays["shown/real"])
        return {"scores": 2, "full_scores": 9, "parameters": 3, "head_parameters": 5}, arrays
    arrays |= {f"{task}/nll": draw.uniform(1, 2, ROWS) for task in model["judged_tasks"]}
    arrays |= {f"chaining/{name}": draw.uniform(1, 2, ROWS) for name in ("step", "control/step")}
    arrays |= {f"shown/{name}": arrays["shown/real"] for name in ("again", "t2v", "i2v", "a2v", "longer", "apart")}
    arrays |= {f"shown/sound/{name}": np.zeros((1, 160), np.int16) for name in ("real", "v2a", "codec")}
    if published:
        arrays |= {name: draw.normal(size=(ROWS, 2)) for name in ("i3d/real", "t2v/i3d", "t2v/c3d")}
    padded = model["batches"] == "padded"
    return {"parameters": 3, "rate": 16000}, arrays | {"positions": np.array([10, 5 if padded else 10])}


def camvig(model, draw, published):
    """The same of CamViG."""
    arrays = {"psnr": np.ones(ROWS), "posed": np.ones(ROWS, bool), "labels": np.zeros(ROWS, np.int64)}
    arrays["nll"] = draw.uniform(1, 2, ROWS)
    for name in ("made", "again", "real"):
        arrays |= {f"{name}/{kind}_error": draw.uniform(1, 9, (ROWS, 4)) for kind in ("turn", "direction")}
        arrays[f"shown/{name}"] = np.zeros((1, 2, 4, 4, 3), np.uint8)
    return {"parameters": 3, "path_tokens": 96}, arrays


def vlora(model, draw, published):
    """The same of VLoRA: captions, and answers of which some are right; or answers to the questions of a benchmark."""
    if model["_target_"].endswith("Answering"):
        question = {"question": "which ?", "answer": "A", "options": {"A": "red", "B": "blue"}, "more": {}}
        tables = [json.dumps({"benchmark": "mmbench", "index": str(row)} | question) for row in range(ROWS)]
        return {}, {"answer/table": encoded(tables), "answer/written": encoded(draw.choice(["A", "B"], ROWS).tolist())}

    def texts(*said):
        return encoded(said)

    arrays = {name: texts(*["a cup"] * ROWS) for name in ("caption/true", "caption/written", "caption/shuffled")}
    arrays |= {"answer/question": texts(*["what"] * ROWS), "answer/true": texts(*["red"] * ROWS)}
    arrays["answer/written"] = texts(*draw.choice(["red", "blue"], ROWS))
    arrays |= {"answer/row": np.arange(ROWS), "caption/tokens": np.full(ROWS, 2)}
    arrays["shown/images"] = np.zeros((1, 4, 4, 3), np.uint8)
    facts = {"visual_tokens": 0, "bridge_parameters": 5, "parameters": 3, "hidden_size": 8, "mlp_dim": 16, "layers": 2}
    return facts | {"kv_dim": 8, "addition_macs": 4}, arrays


def mm_gem(model, draw, published):
    """The same of MM-GEM: vectors, and captions of which some are right."""

    def texts(said):
        return np.stack([np.frombuffer(text.encode().ljust(30, b"\0"), np.uint8) for text in said])

    told = np.array([f"a cup with number {row}" for row in range(ROWS)])
    facts = {"parameters": 3, "parameters_of_two_models": 5, "visual_tokens": model["pool"]["grid"] ** 2}
    arrays = {"captions": texts(told)[:, None], "shown/images": np.zeros((1, 4, 4, 3), np.uint8)}
    if model["losses"]["embedding"]:
        arrays |= {f"{of}_features": draw.normal(size=(ROWS, 4)) for of in ("picture", "text")}
        arrays["text_rows"] = np.arange(ROWS)
    if model["losses"]["generation"]:
        arrays["written"] = texts(np.where(draw.random(ROWS) < 0.5, told, "a cup"))
    return facts, arrays


def fgla(model, draw, published):
    """The same of FGLA: errors of each step, and what was seen in clips."""
    steps, sources = model["frames"] - 1, ["reconstruction", "retrieval"]
    arrays = {name: draw.uniform(1, 2, (ROWS, steps)) for name in ("epe", "copy/epe", "mean/epe")}
    for name in ("step/l1", "step/copy_l1", "step/mean_l1", "copy/l1", "mean/l1", *(f"{each}/l1" for each in sources)):
        arrays[name] = draw.uniform(0.1, 0.2, (ROWS, steps))
    for way in ("accumulated", "by_frame"):
        arrays |= {f"{way}/{name}": draw.uniform(0.1, 0.2, (ROWS, steps)) for name in ("l1", "sharp", "true_l1")}
    for of in sources:
        arrays |= {f"{of}/ssim": draw.random(ROWS), f"{of}/features": draw.normal(size=(ROWS, 2))}
        arrays |= {f"{of}/i3d": draw.normal(size=(ROWS, 2)), f"{of}/lpips": draw.random(ROWS)} if published else {}
    arrays |= {"step/ssim": draw.random(ROWS), "features/real": draw.normal(size=(ROWS, 2))}
    arrays |= {"i3d/real": draw.normal(size=(ROWS, 2))} if published else {}
    arrays |= {f"shown/{name}": np.zeros((1, 3, 4, 4, 3), np.uint8) for name in ("real", *sources)}
    arrays |= {f"shown/{name}": np.ones((1, 2, 2, 4, 4), np.float32) for name in ("flow", "true_flow")}
    return {"parameters": 3, "code_numbers": 512, "reach": 8.0}, arrays


STORED = {
    "movinet": movinet, "lf_vila": lf_vila, "magvit": magvit, "magvit2": magvit2, "spae": spae, "videopoet": videopoet,
    "camvig": camvig, "fgla": fgla, "vlora": vlora, "mm_gem": mm_gem,
}  # fmt: skip


def evaluated(row, published):
    """The evaluation of a row of the plan, with three seeds of each arm that it reads."""
    if row.stage == "pretrain":
        models = {"": system_of(PLAN.pretrain[row.runs])["model"]}
    else:
        compared = [each for each in PLAN.finetune.values() if each.comparison == row.runs]
        models = {f"{each.start}/finetune": system_of(each)["downstream"]["finetune"]["model"] for each in compared}
    draw = np.random.default_rng(0)
    runs = [
        Stored(*STORED[row.paper](model, draw, published), n, name) for name, model in models.items() for n in SEEDS
    ]
    return settings.bind(system_of(row)["evaluate"], row.arm)(runs, row.dataset)


def judged(folder, stem, published=True):
    """The paper's claims of the preset `paper`, each with its row as the stage `claims` writes it; the evaluations."""
    facts = ROOT / "lightning_modules" / stem / "facts.yaml"
    (folder / "lightning_modules" / stem).mkdir(parents=True)
    shutil.copy(facts, folder / "lightning_modules" / stem)
    claims = {claim.id: claim for claim in load_facts(facts).claims if "paper" in claim.presets}
    arms = dict.fromkeys(arm for claim in claims.values() for arm in claim.arms)
    evaluations = {arm: evaluated(PLAN.evaluate[arm], published) for arm in arms}
    for arm, evaluation in evaluations.items():
        write_evaluation(folder / "data/results/paper" / stem / arm, evaluation)
    judge(PLAN, stem, folder)
    rows = json.loads((folder / "results/paper" / stem / "claims.json").read_text())
    return [(claims[row["id"]], row) for row in rows if row["id"] in claims], evaluations


@pytest.mark.parametrize("stem", STORED)
def test_every_claim_gets_a_verdict_from_three_seeds(stem, tmp_path):
    rows, _ = judged(tmp_path, stem)
    assert rows and not {claim.id: row["reason"] for claim, row in rows if row["verdict"] == "not testable"}


def kind(metric):
    """What is measured, without data set and task; `fvd` of the mean over tasks, too."""
    return metric.rpartition("/")[2].removeprefix("mean_")


@pytest.mark.parametrize("stem", ["magvit", "magvit2", "videopoet"])
def test_without_the_published_networks_their_claims_are_not_testable_and_the_others_are_judged(stem, tmp_path):
    rows, evaluations = judged(tmp_path, stem, published=False)
    needed = SEEN_BY | {"lpips": "lpips"}  # of a metric, the setting that names its network
    asking = {claim.id for claim, _ in rows if kind(claim.value.metric) in {*needed, "fid"}}
    assert {claim.id for claim, row in rows if row["verdict"] == "not testable"} == asking
    assert len(asking) < len(rows)
    for claim, row in rows:
        if claim.id in asking:
            arm, metric = claim.value.arm, claim.value.metric
            name, reason = kind(metric), evaluations[arm].not_computed[kind(metric)]
            assert row["reason"] == f"arm {arm} has no metric {metric} for seeds 0, 1, 2"
            if name == "fid":
                assert FID in claim.note and FID in reason
            else:
                assert f"(model.published.{needed[name]}" in claim.note
                assert reason == NOT_COMPUTED[name]
