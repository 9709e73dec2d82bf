"""The page says what the ledger says, twice the same, and needs nothing but its own folder."""

import csv
import json
import os
import re
import shutil
from base64 import b64decode, b64encode
from dataclasses import asdict, replace
from html import escape
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import scipy
import yaml
from PIL import Image

from lightning_modules.datasets.video.films import Sound
from lightning_modules.metrics import claims
from lightning_modules.runs import Evaluation, Exhibit, Figure, Gallery, Picture, Series
from lightning_modules.videopoet.sounds import sounding
from stages import evaluate, page, report
from stages.claims import judge
from stages.page import figures, machine
from stages.plan import load_plan

HOSTILE = '<script>alert("x")</script> & co'
ARMS = {"alpha-digits": "digits", "alpha-mnist": "mnist", "beta-digits": "digits"}
FIGURE = {
    "id": "pareto",
    "title": f"Accuracy {HOSTILE}",
    "caption": "Mean over seeds.",
    "x_label": "MACs per sample",
    "y_label": "top-1, $percent$",
    "x_scale": "log",
    "series": [
        {"name": "single", "kind": "line", "x": [500.0, 9000.0], "y": [90.0, 95.0], "low": [89.0, 94.0],
         "high": [91.0, 96.0], "labels": ["h8", "h64"]},
        {"name": "limit", "kind": "dashed", "x": [500.0, 9000.0], "y": [96.0, 96.0], "low": None, "high": None,
         "labels": None},
    ],
}  # fmt: skip

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
GALLERY = Gallery(
    "captioned", f"Captions {HOSTILE}", f"Of seed 0 {HOSTILE}",
    [[
        Exhibit("image", Picture.of(PIXELS, f'a "red" circle {HOSTILE}')),
        sounding(f"heard {HOSTILE}", np.stack([PIXELS, PIXELS[::-1]]), np.arange(99, dtype=np.int16), 8000),
        Exhibit("said of it", text=[("a ", None), ("red", True), (" ", None), ("square", False), (HOSTILE, None)]),
    ]],
)  # fmt: skip


def claim(name, arm, value, reference, **changes):
    return {
        "id": name,
        "statement": f"Claim {name} {HOSTILE}",
        "place": "Table 1",
        "paper_value": "+1.0 < 2 points",
        "paper_value_source": "recalled, not re-read",
        "direction": "higher",
        "value": {"arm": arm, "metric": value},
        "reference": reference if isinstance(reference, float) else {"arm": arm, "metric": reference},
        "compare": "difference",
        "margin": 0.0,
        "unit": "points",
        "presets": ["tiny"],
        "min_seeds": 3,
        **changes,
    }


CLAIMS = {
    "alpha": [
        claim("shown", "alpha-digits", "more", "less"),
        claim("refuted", "alpha-digits", "less", "more", note=HOSTILE),
        claim("undecided", "alpha-digits", "noise", 90.0, post_hoc=True, note="Changed after seed 7 had been seen."),
        claim("ratio", "alpha-digits", "more", "less", compare="ratio", direction="lower"),
        claim("equal", "alpha-digits", "more", "less", direction="equal", margin=5.0),
        claim("absent", "alpha-mnist", "more", "less"),
    ],
    "beta": [
        claim("few", "beta-digits", "more", "less", min_seeds=9, paper_value=None, paper_value_source=None),
        claim("one", "beta-digits", "single_seed", 1.0),
        claim("paper", "beta-digits", "more", "less", presets=["paper"]),
    ],
}


def row(arm, **keys):
    return {"system": arm.split("-")[0], "overrides": {}, **keys}


def results_of(root, arm):
    return root / "data/results/tiny" / arm.removeprefix("sweep-").split("-")[0] / arm


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with two papers, of which one arm has no results."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for stem, made in CLAIMS.items():
        facts = {
            "stem": stem, "title": f"{stem} {HOSTILE}", "authors": ["A. Author", "B. Author"], "year": 2020,
            "venue": "ICLR", "arxiv": "2012.01988", "official_code": "https://example.org/code", "idea": HOSTILE,
            "differences": [HOSTILE], "claims": made,
        }  # fmt: skip
        (tmp_path / f"lightning_modules/{stem}").mkdir(parents=True)
        (tmp_path / f"lightning_modules/{stem}/facts.yaml").write_text(yaml.safe_dump(facts))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"seeds": [0, 1, 2, 3], "at_least": None}))
    for stem in CLAIMS:
        arms = {arm: data for arm, data in ARMS.items() if arm.startswith(stem)}
        plan = {
            "preset": "tiny", "paper": stem, "max_seeds": None,
            "datasets": ["digits", "mnist"] if stem == "alpha" else [],
            "pretrain": {arm: row(arm, dataset=data) for arm, data in arms.items()},
            "pretrain_from": {}, "finetune": {},
            "evaluate": {arm: row(arm, stage="pretrain", runs=arm) for arm in arms},
            "sweep": {arm: row(arm, runs=arm) for arm in ("alpha-digits", "alpha-mnist") if arm in arms},
        }  # fmt: skip
        (tmp_path / "plans/tiny" / stem).mkdir(parents=True)
        (tmp_path / "plans/tiny" / stem / "params.yaml").write_text(yaml.safe_dump(plan))
    metrics = {
        seed: {
            "more": 92.0 + seed / 7,
            "less": 90.0 + seed / 9,
            "noise": 90.0 + (-1) ** seed,
            "macs": 7.0,
            "single_seed": 1.0,
        }
        for seed in range(4)
    }
    del metrics[3]["single_seed"]
    for arm in ("alpha-digits", "beta-digits", "sweep-alpha-digits"):
        folder = results_of(tmp_path, arm)
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "figures.json").write_text(json.dumps([FIGURE]))
    evaluation = Evaluation(metrics, galleries=[GALLERY], not_computed={"meteor": f"it needs Java {HOSTILE}"})
    evaluate.write_evaluation(results_of(tmp_path, "beta-digits"), evaluation)
    study = {"statement": f"Ensembles start to win at 9,000 MACs {HOSTILE}."}
    (results_of(tmp_path, "sweep-alpha-digits") / "study.json").write_text(json.dumps(study))
    (tmp_path / ".scratch/unavailable").mkdir(parents=True)
    (tmp_path / ".scratch/unavailable/mnist-tiny.txt").write_text(f"mnist: nobody answered {HOSTILE}\n")
    return tmp_path


class Reader(HTMLParser):
    """Collects the numbers of the claims, the tags with their attributes, and the text of the page."""

    def __init__(self, text):
        super().__init__()
        self.claims, self.tags, self.text, self.ids, self._open = {}, [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        if "data-claim" in attributes:
            self.current = self.claims.setdefault(attributes["data-claim"], {})
        if tag == "data":
            self.current[attributes["class"]] = attributes["value"]
        if tag not in {"meta", "link", "br", "wbr", "img", "input", "source"}:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self._open[-1:] not in (["script"], ["style"]):
            self.text.append(data)


def made(project):
    plan = load_plan("tiny", project)
    for stem in CLAIMS:
        judge(plan, stem, project)
    folder, reader = page_of(project)
    return folder, ledger_of(project), reader


def page_of(project):
    report.main([], root=project)
    folder = project / "data/report/tiny"
    return folder, Reader(text_of(folder))


def pages_of(folder):
    return [folder / "index.html", *sorted((folder / "papers").iterdir())]


def text_of(folder):
    return "".join(path.read_text() for path in pages_of(folder))


def ledger_of(project):
    return [row for stem in CLAIMS for row in json.loads((project / f"results/tiny/{stem}/claims.json").read_text())]


def test_the_page_shows_the_numbers_of_the_ledger(project):
    _, ledger, reader = made(project)
    assert len(ledger) == len(reader.claims) == sum(map(len, CLAIMS.values()))
    for row in ledger:
        shown = reader.claims[f"{row['paper']}/{row['id']}"]
        assert shown["verdict"] == row["verdict"]
        for name in ("value", "reference", "difference"):
            assert shown.get(name, "") == ("" if row[name] is None else str(row[name])), (row["id"], name)
        assert [float(end) for end in shown.get("interval", "").split()] == (row["interval"] or [])
        assert int(shown.get("n", 0)) == row["n"]


def test_every_verdict_is_reached_with_its_reason(project):
    _, ledger, reader = made(project)
    found = {row["id"]: row["verdict"] for row in ledger}
    assert found == {
        "shown": "shown", "refuted": "refuted", "undecided": "undecided", "ratio": "refuted", "equal": "shown",
        "absent": "not testable", "few": "not testable", "one": "not testable", "paper": "not testable",
    }  # fmt: skip
    text = "".join(reader.text)
    for row in ledger:
        assert row["reason"][1:] in text
    assert "data set mnist was not available" in text
    assert "mnist: nobody answered" in text
    assert "Not computed: meteor (it needs Java" in text


def test_a_claim_says_which_one_training_all_its_seeds_start_from(project):
    path = project / "plans/tiny/alpha/params.yaml"
    plan = yaml.safe_load(path.read_text())
    plan["pretrain"]["alpha-tokens"] = row("alpha-tokens", dataset="digits", max_seeds=1)
    plan["pretrain_from"]["alpha-digits"] = {**plan["pretrain"].pop("alpha-digits"), "from": "alpha-tokens"}
    path.write_text(yaml.safe_dump(plan))
    _, ledger, reader = made(project)
    shared = {each["id"]: each["shared"] for each in ledger}
    assert shared["shown"] == shared["undecided"] == ["alpha-tokens"] and shared["absent"] == shared["few"] == []
    assert "All seeds start from one training of alpha-tokens." in "".join(reader.text)
    plan["pretrain"]["alpha-tokens"]["max_seeds"] = None
    path.write_text(yaml.safe_dump(plan))
    _, ledger, reader = made(project)
    assert not any(each["shared"] for each in ledger)
    assert "All seeds start from one training" not in "".join(reader.text)


def test_the_page_tells_post_hoc_claims_p_values_and_what_survives_holms_correction(project):
    _, ledger, reader = made(project)
    text = " ".join("".join(reader.text).split())
    for row in ledger:
        shown = reader.claims[f"{row['paper']}/{row['id']}"]
        assert ("post_hoc" in shown) == row["post_hoc"]
        if row["p_value"] is not None:
            assert [float(shown[name]) for name in ("p_value", "p_holm")] == [row["p_value"], row["p_holm"]]
            assert shown["verdict_holm"] == row["verdict_holm"]
        else:
            assert "p_value" not in shown
    assert [row["id"] for row in ledger if row["post_hoc"]] == ["undecided"]
    assert "except in 1 of the 5 judged claims: these are marked post hoc" in text
    assert "Changed after seed 7 had been seen." in text
    assert "at most 0.25 of 5" in text
    assert "5 claims are judged here. At most 0.25 of them are expected to be false." in text
    survive = page.count(ledger, "verdict_holm")
    assert f"All papers 5 0.25 1 {survive['shown']} {survive['refuted']} {survive['undecided']}" in text


def test_the_sound_of_a_clip_is_played_beside_it_and_is_in_the_page_once(project):
    folder, _ = page_of(project)
    page = text_of(folder)
    wav = b64encode(Sound(np.arange(99, dtype=np.int16), 8000).wav()).decode()
    shown = re.findall(r'<audio controls preload="none" src="data:audio/wav;base64,([^"]+)"', page)
    assert shown and set(shown) == {wav}
    pictures = re.findall(r'data:image/png;base64,([^"]+)"', page)
    assert not any(b"soUd" in b64decode(png) for png in pictures)


def test_a_page_without_post_hoc_claims_says_so_and_counts_are_told_as_facts(project):
    path = project / "lightning_modules/alpha/facts.yaml"
    facts = yaml.safe_load(path.read_text())
    facts["claims"] = [
        claim("shown", "alpha-digits", "more", "less"),
        claim("count", "alpha-digits", "macs", 0.5),
    ]
    path.write_text(yaml.safe_dump(facts))
    _, ledger, reader = made(project)
    text = " ".join("".join(reader.text).split())
    assert [row["exact"] for row in ledger[:2]] == [False, True]
    assert "margin of each claim were also fixed before the first test number" in text
    assert "here at most 0.05 of 1. 1 more compares a number that is the same for every seed" in text
    assert "none: both sides are the same for every seed" in text


def test_a_sweep_is_shown_with_its_statement_and_one_without_results_says_why(project):
    _, _, reader = made(project)
    text = "".join(reader.text)
    assert f"Ensembles start to win at 9,000 MACs {HOSTILE}." in text
    assert "No results, because data set mnist was not available." in text


def test_two_runs_give_the_same_bytes_and_name_no_place(project):
    def tree(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    folder, _, _ = made(project)
    first = tree(folder)
    assert first == tree(made(project)[0])
    for name, content in first.items():
        assert str(project).encode() not in content, name
        assert not re.search(rb"<dc:date|Matplotlib v|20\d\d-\d\d-\d\dT", content), name


def test_nothing_outside_the_folder_is_loaded(project):
    folder, _, reader = made(project)
    for tag, attributes in reader.tags:
        for name in ("src", "srcset", "data", "poster", "action", "xlink:href"):
            address = attributes.get(name, "")
            local = address.startswith(("#", "data:image/png;base64,", "data:audio/wav;base64,"))
            assert local or address in ("", "machine.js", "../machine.js"), (tag, address)
        if name := attributes.get("href"):
            assert tag == "a" or name.startswith("#"), (tag, name)
    text = text_of(folder)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_text_of_the_facts_and_figures_is_escaped(project):
    folder, _, reader = made(project)
    assert (
        sum(tag == "script" for tag, _ in reader.tags) == 3 * 2
    )  # machine.js and what reads it, on the page of each paper
    assert "alert" not in re.sub(r"&lt;script&gt;alert", "", text_of(folder))
    assert "".join(reader.text).count(HOSTILE) >= len(CLAIMS["alpha"]) + len(CLAIMS["beta"])


def test_ids_are_unique_and_links_between_the_pages_lead_somewhere(project):
    folder, _, _ = made(project)
    read = {path: Reader(path.read_text()) for path in pages_of(folder)}
    assert len(read) == 1 + len(CLAIMS)
    links = 0
    for path, reader in read.items():
        assert sorted(reader.ids) == sorted(set(reader.ids))
        named = {name for _, attributes in reader.tags for name in attributes.get("aria-labelledby", "").split()}
        assert named <= set(reader.ids)
        for link in (at[name] for _, at in reader.tags for name in ("href", "xlink:href") if name in at):
            file, _, place = link.partition("#")
            if not file.startswith("http"):
                target = (path.parent / file).resolve() if file else path
                assert not place or place in read[target].ids, f"{path.name}: {link}"
                links += 1
    assert links > 40


def test_a_table_tells_what_it_would_take_to_decide_each_claim(project):
    folder, ledger, _ = made(project)
    table = (folder / "index.html").read_text().partition('id="claims"')[2]
    for row in ledger:
        cell = table.partition(f'papers/{row["paper"]}.html#{row["paper"]}-{row["id"]}"')[2].partition("</tr>")[0]
        assert row["verdict"] in cell and escape(page.needed(row)) in cell
    told = {row["id"]: page.needed(row) for row in ledger}
    assert told["shown"] == told["refuted"] == "decided"
    assert told["undecided"] == "more than 100 seeds: the mean is close to the margin"
    assert told["paper"] == "Can be judged at preset paper only"


@pytest.mark.parametrize(
    ("direction", "compare", "differences", "margin"),
    [
        ("higher", "difference", [0.2, 1.4, 2.0], 0.5),
        ("lower", "difference", [-0.2, -1.4, -2.0], 0.5),
        ("equal", "difference", [-0.6, 0.1, 0.8], 1.0),
        ("higher", "ratio", [1.0, 1.2, 1.5], 1.05),
    ],
)
def test_so_many_seeds_of_the_same_mean_and_spread_decide_a_claim(direction, compare, differences, margin):
    def decided(n):
        values = np.log(differences) if compare == "ratio" else np.array(differences)
        half = scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)
        ends, edge = (values.mean() - half, values.mean() + half), np.log(margin) if compare == "ratio" else margin
        return claims.decide(direction, *ends, edge)[0] != "undecided", ends, values.mean()

    undecided, ends, mean = decided(3)
    assert not undecided
    told = np.exp if compare == "ratio" else np.array
    row = {"compare": compare, "direction": direction, "margin": margin, "n": 3, "difference": told(mean)}
    found = page.seeds_needed({**row, "interval": list(told(ends))})
    assert decided(found)[0] and not decided(found - 1)[0]


def test_metrics_and_points_for_dvc(project):
    folder, _, _ = made(project)
    metrics = {
        arm: rows
        for stem in CLAIMS
        for arm, rows in json.loads((project / f"results/tiny/{stem}/metrics.json").read_text()).items()
    }
    assert set(metrics) == {"alpha-digits", "beta-digits", "sweep-alpha-digits"}
    assert metrics["beta-digits"]["single_seed"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 3}
    rows = list(csv.DictReader((folder / "plots/figures.csv").read_text().splitlines()))
    assert rows[0] == {
        "arm": "alpha-digits", "figure": "pareto", "series": "single", "x": "500.0", "y": "90.0", "low": "89.0",
        "high": "91.0",
    }  # fmt: skip


def test_examples_are_shown_with_right_and_wrong_words(project):
    folder, _, reader = made(project)
    image, moving = (attributes for tag, attributes in reader.tags if tag == "img")
    assert moving["alt"].startswith("heard ") and moving["alt"].endswith("with sound")
    assert image["alt"] == f'a "red" circle {HOSTILE}'
    with Image.open(BytesIO(b64decode(image["src"].partition(",")[2]))) as picture:
        np.testing.assert_array_equal(np.array(picture), PIXELS)
    assert f"a red (right) square (wrong){HOSTILE}" in "".join(reader.text)
    marked = [attributes["class"] for tag, attributes in reader.tags if tag == "mark"]
    assert marked == ["right", "wrong", "right", "wrong"]  # what the marks mean, and the two words
    assert "beta-digits-captioned" in reader.ids
    assert text_of(folder).count("Examples: <code>") == 1


def test_an_evaluation_without_examples_writes_none(tmp_path):
    evaluate.write_evaluation(tmp_path, Evaluation({0: {"top1": 1.0}}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "metrics.json"]
    assert page.load_galleries(tmp_path / "galleries.json") == []
    assert page.load_not_computed(tmp_path / "not_computed.json") == {}


def test_a_picture_is_small_and_says_what_it_shows():
    with pytest.raises(ValueError, match="alt is empty"):
        Picture.of(PIXELS, " ")
    for wrong in (np.zeros((8, 513, 3), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8)):
        with pytest.raises(ValueError, match=r"expected uint8 \(height, width, 3\), each side at most 512"):
            Picture.of(wrong, "a picture")


def test_show_prints_every_claim_and_where_the_page_is(project, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    made(project)
    report.main(["--show"], root=project)
    printed = capsys.readouterr().out
    assert "2 shown, 2 refuted, 1 undecided, 4 not testable" in printed
    assert "false verdicts to expect by chance: at most 0.25" in printed
    assert "with Holm's correction: " in printed
    assert "undecided (post hoc)" in printed
    assert "could not run: alpha-mnist: no results, because data set mnist was not available" in printed
    assert "data/report/tiny/index.html" in printed
    ledger = ledger_of(project)
    for row in ledger:
        assert (row["id"] in printed) == (row["verdict"] != "not testable")


def test_a_paper_without_results_keeps_the_verdicts_that_are_committed(project):
    _, ledger, _ = made(project)
    shutil.rmtree(project / "data")
    _, reader = page_of(project)
    assert "Arm alpha-digits: it was not run on this machine; its verdicts are the committed ones." in "".join(
        reader.text
    )
    assert {name: shown["verdict"] for name, shown in reader.claims.items()} == {
        f"{row['paper']}/{row['id']}": row["verdict"] for row in ledger
    }


def record(folder, seed, start=1, **parts):
    tags = {
        "preset": "tiny",
        "arm": "alpha-digits",
        "stage": "pretrain",
        "seed": str(seed),
        "cpu": "Fast",
        "cores": "2",
    }
    folder = folder / f".scratch/runs/alpha/{seed}-{start}"
    folder.mkdir(parents=True)
    for name, content in {"meta": {"start": start, "tags": tags}, **parts}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_claims_over_results_that_are_not_up_to_date_are_not_judged(project):
    papers = report.read_papers(load_plan("tiny", project), project, {}, pending={"alpha-digits"})
    rows = [row for paper in papers for row in paper.rows if "alpha-digits" in row["arms"]]
    assert len(rows) == 5 and {row["verdict"] for row in rows} == {"not testable"}
    assert all("not up to date" in row["reason"] for row in rows)


def test_facts_of_the_machine_stay_out_of_the_page(project):
    before = text_of(made(project)[0])
    record(project, 0, status={"wall_seconds": 70.0, "peak_memory_mib": 99.0}, machine={
        "h8/milliseconds_per_image@batch_1": 0.5, "h64/milliseconds_per_image@batch_1": 2.0,
        "made_by.processor": "AVX2", "made_by.precision": '"32-true"', "made_by.torch": "2.13.0",
    })  # fmt: skip
    record(project, 1, status={"wall_seconds": 999.0})  # superseded by the next
    record(project, 1, start=2, status={"wall_seconds": 10.0, "peak_memory_mib": 120.0})
    record(project, 2)  # still running
    record(project, 3, sent={"uri": "http://host:5000/", "experiment_id": "4", "run_id": "abc"})
    folder, _, _ = made(project)
    assert text_of(folder) == before
    script = (folder / "machine.js").read_text()
    found = json.loads(script.removeprefix("window.REPRISE_MACHINE = ").rstrip(";\n"))["pretrain/alpha-digits"]
    assert (found["time"], found["memory"], found["hardware"]) == ("1 min 20 s", "120 MiB RAM", "Fast, 2 cores")
    assert found["latency"] == "0.5 to 2 (batch 1)"
    assert found["software"] == "AVX2, 32-true, torch 2.13.0"
    assert [run["name"] for run in found["runs"]] == ["seed 0", "seed 1", "seed 2", "seed 3"]
    assert found["runs"][3]["url"] == "http://host:5000/#/experiments/4/runs/abc?workflowType=machine_learning"
    assert found["runs"][0]["url"] is None


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.04, "0.0 s"), (59.97, "1 min 00 s"), (3599.7, "1 h 00 min"), (7800, "2 h 10 min")]
)
def test_duration(seconds, told):
    assert machine.duration(seconds) == told


def test_numbers_are_told_with_the_digits_they_earn():
    assert [page.number(x) for x in (25856.0, 96.4213, 0.0, -0.0734, None)] == ["25,856", "96.42", "0", "−0.0734", "–"]
    assert [page.number(x, 2) for x in (-0.001, -1.0)] == ["0.00", "−1.00"]
    assert page.interval([0.537213, 1.245], "difference") == "+0.54 to +1.25"
    assert page.interval([950000.0, 1100000.0]) == "950,000 to 1,100,000"
    assert page.change(1.8349, "ratio", 2) == "×1.83"


@pytest.mark.parametrize(
    ("direction", "compare", "size", "told"),
    [
        ("higher", "difference", 0.0, "0"),
        ("higher", "difference", 0.5, "0.5"),
        ("lower", "difference", 0.5, "−0.5"),
        ("equal", "difference", 0.3, "±0.3"),
        ("higher", "ratio", 1.25, "×1.25"),
        ("lower", "ratio", 1.25, "×0.8"),
        ("equal", "ratio", 1.25, "×0.8 to ×1.25"),
    ],
)
def test_margin_in_words(direction, compare, size, told):
    assert page.margin({"direction": direction, "compare": compare, "margin": size}) == told


def test_interval_plot_puts_the_interval_where_the_verdict_says():
    row = {"compare": "difference", "direction": "higher", "margin": 0.5, "difference": 1.0, "interval": [0.6, 1.4]}
    at = page.interval_scale(row)
    assert at["target"][0] < at["low"] < at["mean"] < at["high"] < at["target"][1]
    assert at["neutral"] < at["margins"][0] == at["target"][0]
    at = page.interval_scale({**row, "direction": "equal"})
    assert at["target"][0] < at["neutral"] < at["target"][1] < at["low"]
    halves = {
        **row,
        "compare": "ratio",
        "direction": "lower",
        "margin": 1.0,
        "difference": 0.5,
        "interval": [0.25, 1.0],
    }
    at = page.interval_scale(halves)
    assert at["high"] == at["neutral"] == at["target"][1]
    assert at["mean"] - at["low"] == pytest.approx(at["high"] - at["mean"], abs=0.02)  # a log axis


def drawn(kind="line", **changes):
    series = Series(
        name="one", kind=kind, x=[1.0, 2.0], y=[3.0, 4.0], low=[2.5, 3.5], high=[3.5, 4.5], labels=["a", "b"]
    )
    return Figure(id="f", title="T", caption="C", x_label="x", y_label="y", series=[series], **changes)


@pytest.mark.parametrize("kind", ["line", "dashed", "points", "bars"])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_every_kind_of_series_is_drawn_in_colours_of_the_page(kind, scale):
    picture = figures.svg(drawn(kind, x_scale=scale), "p")
    assert picture.startswith('<svg role="img" aria-label="T. C" viewBox=')
    assert "var(--series-1)" in picture
    assert "currentColor" in picture
    assert figures.INK not in picture
    assert not re.search(r"(fill|stroke): #", picture)


def test_the_legend_has_the_colours_of_the_curves(project):
    folder, _ = page_of(project)
    legend = re.search(r'<ul class="legend".*?</ul>', text_of(folder), re.DOTALL)[0]
    said = re.findall(r'var\(--series-(\d)\)" class="(\w+)".*?</svg> (.*?)</li>', legend)
    assert said == [("1", "line", "single"), ("2", "dashed", "limit")]


def test_the_page_shows_what_the_trainings_of_a_paper_have_logged(project):
    folder = project / "data/curves/tiny/pretrain"
    for arm, losses in {"alpha-digits": (2, 1), "beta-digits": (4, 3)}.items():
        for seed in (0, 1):
            rows = "step,lr,pretrain/loss,pretrain/<script>alert & co,validation/accuracy\n"
            rows += f"0,0.1,{losses[0]},1,\n10,,{losses[1]},2,0.{seed}\n"
            (folder / arm / f"seed-{seed}").mkdir(parents=True)
            (folder / arm / f"seed-{seed}/history.csv").write_text(rows)
    _, _, reader = made(project)
    text = " ".join("".join(reader.text).split())
    assert text.count("Trainings Lines are losses on training batches") == 2  # of two papers
    assert "alpha on digits 2 seeds alpha-digits loss" in text and "accuracy (val)" in text
    assert "1 further loss of training batches" in text
    assert "lossalpha-digits1– accuracyalpha-digits–0.05" in text, "the last values, in training and on val"
    buttons = [attributes for tag, attributes in reader.tags if tag == "button"]
    assert [(each["data-curve"], each["aria-pressed"]) for each in buttons] == [("0", "false")] * 2
    assert sum(tag == "script" for tag, _ in reader.tags) == 3 * 2, "what a column is called is escaped"


def test_a_share_ends_at_0_and_100_and_a_difference_does_not():
    for label, ends in (("recall, %", True), ("gain (points)", False)):
        wide = drawn("points")
        wide.y_label, wide.series[0].low, wide.series[0].high = label, [-20.0, 50.0], [90.0, 130.0]
        (axes,) = figures._draw(wide, "black", ("blue",), figures.SMALL).axes
        low, high = axes.get_ylim()
        assert (low, high) == (-2, 102) if ends else low < -20 and high > 130


def axes_of(figure):
    (axes,) = figures._draw(figure, "black", figures.SERIES, figures.LARGE).axes
    return axes


def shown_ticks(axis):
    low, high = sorted(axis.get_view_interval())
    return [tick for tick in axis.get_majorticklocs() if low <= tick <= high]


def test_lines_of_one_point_each_become_bars_that_start_at_0(tmp_path):
    lines = [
        Series(name, kind, [1.0], [y], None, None) for name, kind, y in (("a", "line", 1.03), ("b", "dashed", 1.0))
    ]
    one = Figure("flow", "Flow by layer", "c", "layer", "times", lines, x_scale="log")
    two = replace(one, series=[*lines, Series("c", "line", [1.0, 2.0], [1.0, 1.1])])
    cloud = replace(one, series=[replace(lines[0], kind="points")])
    (tmp_path / "figures.json").write_text(json.dumps([asdict(figure) for figure in (one, two, cloud)]))
    barred, *others = figures.load(tmp_path / "figures.json")
    assert [(series.kind, series.labels) for series in barred.series] == [("bars", ["1"])] * 2
    assert others == [two, cloud], "what has several places, or is a cloud, stays as it is"
    axes = axes_of(barred)
    assert axes.get_ylim()[0] == 0 and [text.get_text() for text in axes.get_xticklabels()] == ["1"]


def test_a_series_that_is_called_like_a_metric_gets_a_name_for_reading(tmp_path):
    series = [
        Series(name, "bars", [0.0, 1.0], [1.0, 2.0]) for name in ("questions/accuracy_percent/yes_no", "mlp-h32#1")
    ]
    (tmp_path / "figures.json").write_text(json.dumps([asdict(Figure("f", "t", "c", "arm", "percent", series))]))
    (figure,) = figures.load(tmp_path / "figures.json")
    assert [each.name for each in figure.series] == ["questions, accuracy, yes no", "mlp-h32#1"]


def test_an_axis_of_layers_has_no_halves():
    layers = drawn()
    assert shown_ticks(axes_of(layers).xaxis) == [1, 2]
    layers.series[0].x = [1.0, 2.5]
    assert len(shown_ticks(axes_of(layers).xaxis)) > 3


@pytest.mark.parametrize(("x", "y"), [([3.7e6, 7.3e6], [23.0, 26.0]), ([6.9e5, 1.37e6], [59.0, 61.0])])
def test_an_axis_has_ticks_also_between_round_numbers(x, y):
    narrow = drawn(x_scale="log", y_scale="log_error")
    narrow.series = [replace(narrow.series[0], x=x, y=y, low=None, high=None)]
    axes = axes_of(narrow)
    assert len(shown_ticks(axes.xaxis)) >= figures.FEW and len(shown_ticks(axes.yaxis)) >= figures.FEW
    low, high = axes.get_ylim()
    assert y[0] - low < 1 and high - y[1] < 1, "the curve fills the figure"


def test_names_beside_points_do_not_run_into_each_other():
    """Two points nearly in one place: one name goes to another corner; of many there, some are left out."""
    cloud = drawn("points")
    cloud.series = [replace(cloud.series[0], x=[0.0, 0.5, 0.51], y=[0.0, 0.5, 0.501], low=None, high=None)]
    cloud.series[0].labels = ["far", "first-of-two", "second-of-two"]
    written = axes_of(cloud).texts
    assert [text.get_text() for text in written] == cloud.series[0].labels
    assert written[1].get_ha() != written[2].get_ha() or written[1].get_va() != written[2].get_va()
    cloud.series[0].x, cloud.series[0].y = [0.0, *[0.5] * 9], [0.0, *[0.5] * 9]
    cloud.series[0].labels = ["far", *(f"one-of-nine-{number}" for number in range(9))]
    assert 1 < len(axes_of(cloud).texts) < 10


def test_a_kept_drawing_is_the_one_that_would_be_drawn_and_another_figure_is_another(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    figure, kept = drawn(), tmp_path / ".scratch/figures"
    first = figures.svg(figure, "a"), figures.png(figure)
    with monkeypatch.context() as patch:
        patch.setattr(figures, "_draw", None)
        assert (figures.svg(figure, "a"), figures.png(figure)) == first
    assert figures._svg(figure, "a", figures.SMALL) == first[0] and figures._png(figure, 144) == first[1]
    assert figures.svg(figure, "b") != first[0] and figures.svg(replace(figure, title="Other"), "a") != first[0]
    assert len(list(kept.iterdir())) == 4
    old = next(kept.glob("*.png"))
    os.utime(old, (0, 0))
    figures.tidy()
    assert not old.exists() and len(list(kept.iterdir())) == 3


def test_a_figure_as_an_artifact_is_a_png():
    assert figures.png(drawn()).startswith(b"\x89PNG")
    assert figures.png(drawn()) == figures.png(drawn())


def test_an_own_idea_comes_after_the_papers_and_counts_in_no_total(project):
    _, _, before = made(project)
    (project / "ideas/aaa").mkdir(parents=True)
    own = claim("mine", "aaa-digits", "more", "less")
    for name in ("place", "paper_value", "paper_value_source"):
        del own[name]
    idea = {"stem": "aaa", "against": "beta", "title": f"Idea {HOSTILE}", "idea": HOSTILE, "claims": [own]}
    (project / "ideas/aaa/idea.yaml").write_text(yaml.safe_dump(idea))
    (project / "plans/tiny/aaa").mkdir()
    plan = {
        "preset": "tiny", "paper": "aaa", "max_seeds": None, "datasets": [], "pretrain": {}, "pretrain_from": {},
        "finetune": {}, "sweep": {}, "evaluate": {"aaa-digits": row("alpha", stage="pretrain", runs="alpha-digits")},
    }  # fmt: skip
    (project / "plans/tiny/aaa/params.yaml").write_text(yaml.safe_dump(plan))
    shutil.copytree(results_of(project, "alpha-digits"), results_of(project, "aaa-digits"))
    (found,) = judge(load_plan("tiny", project), "aaa", project).rows
    assert (found["verdict"], found["place"], found["arms"]) == ("shown", "own idea", ["aaa-digits"])
    _, reader = page_of(project)
    text, old = (" ".join("".join(each.text).split()) for each in (reader, before))
    papers = list(dict.fromkeys(id for id in re.findall(r"papers/(\w+)\.html", text_of(project / "data/report/tiny"))))
    assert papers == ["alpha", "beta", "aaa"] and "own idea" in text and "held against beta" in text
    start, end = "How a verdict is reached", "What could not run"
    assert text.partition(start)[2].partition(end)[0] == old.partition(start)[2].partition(end)[0]  # totals and tables
    (project / "lightning_modules/aaa").mkdir()
    (project / "lightning_modules/aaa/facts.yaml").write_text("")
    with pytest.raises(ValueError, match=r"facts\.yaml and .*idea\.yaml; .* choose another name for the idea"):
        report.read_paper(load_plan("tiny", project), "aaa", project, {})
