"""The verdict rule on hand-computed cases, and the errors of a facts file."""

import json
import math

import numpy as np
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from lightning_modules.metrics.claims import (
    Claim,
    Facts,
    Operand,
    chance,
    check_plan,
    confidence_interval,
    decide,
    holm,
    judge,
    ledger,
    load_facts,
    p_value,
    summary,
)

CLAIM = {
    "id": "K1",
    "statement": "A cascade beats the single network.",
    "place": "Table 1",
    "paper_value": "+1.0 points",
    "paper_value_source": "recalled, not re-read",
    "direction": "higher",
    "value": {"arm": "alpha-digits", "metric": "digits/cascade/score"},
    "reference": {"arm": "alpha-digits", "metric": "digits/single/score"},
    "compare": "difference",
    "margin": 0.0,
    "unit": "points",
    "presets": ["tiny"],
    "min_seeds": 3,
}
FACTS = {
    "stem": "alpha",
    "title": "Alpha",
    "authors": ["A. Author"],
    "year": 2020,
    "venue": "ICLR",
    "arxiv": "2012.01988",
    "official_code": None,
    "idea": "Averages.",
    "differences": [],
    "claims": [CLAIM],
}


def results(differences, reference=10.0):
    """One arm whose cascade is better than its single network by the given differences, one per seed."""
    names = ("digits/cascade/score", "digits/single/score")
    rows = [(reference + seed + gain, reference + seed) for seed, gain in enumerate(differences)]
    return {"alpha-digits": {seed: dict(zip(names, row, strict=True)) for seed, row in enumerate(rows)}}


def verdict(differences, **changes):
    row = judge(Claim(**{**CLAIM, **changes}), results(differences), "tiny")
    return row["verdict"]


def test_interval_by_hand():
    # mean 2, standard deviation 1, t(2 degrees, 0.975) = 4.302653, half width 4.302653 / sqrt(3) = 2.484138
    assert confidence_interval([1.0, 2.0, 3.0]) == (2.0, -0.484138, 4.484138, 3)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_interval_agrees_with_scipy(values):
    mean, low, high, n = confidence_interval(values)
    assert n == len(values)
    if np.std(values, ddof=1) > 1e-9:
        expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert (low, high) == pytest.approx(tuple(expected), abs=2e-6)
    assert low <= mean <= high


def test_the_interval_of_a_share_stays_within_its_bounds_and_the_difference_decides():
    # mean 0.9, standard error 0.05, logit 2.197225 -+ 4.302653 * 0.05 / 0.09
    assert confidence_interval([80.0, 95.0, 95.0], (0.0, 100.0)) == pytest.approx((90.0, 45.1865, 98.9925, 3), abs=1e-4)
    assert confidence_interval([100.0, 100.0], (0.0, 100.0)) == (100.0, 100.0, 100.0, 2)
    with pytest.raises(ValueError, match=r"values from 90.0 to 101.0 of a metric within 0.0 and 100.0"):
        confidence_interval([90.0, 101.0], (0.0, 100.0))
    names = ("digits/cascade/top1_percent", "digits/single/top1_percent")
    rows = {"alpha-digits": {k: dict(zip(names, (x, 50.0), strict=True)) for k, x in enumerate([80.0, 100.0, 100.0])}}
    sides = [{"arm": "alpha-digits", "metric": name} for name in names]
    row = judge(Claim(**CLAIM | dict(zip(("value", "reference"), sides, strict=True))), rows, "tiny")
    assert 0 < row["value_interval"][0] < 93 < row["value_interval"][1] < 100
    plain = confidence_interval([30.0, 50.0, 50.0])
    assert (row["interval"], row["difference"]) == ([plain.low, plain.high], plain.mean) and plain.high > 50
    told = summary(rows)["alpha-digits"]["digits/cascade/top1_percent"]
    assert [told["low"], told["high"]] == row["value_interval"]


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6))
def test_no_interval_of_a_share_leaves_its_bounds(values):
    mean, low, high, _ = confidence_interval(values, (0.0, 100.0))
    assert 0 <= low <= mean <= high <= 100


def test_one_value_has_no_interval_and_no_value_is_an_error():
    assert confidence_interval([4.0]) == (4.0, None, None, 1)
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="at least one value and only finite ones"):
            confidence_interval(bad)


@pytest.mark.parametrize(
    ("direction", "low", "high", "margin", "expected"),
    [
        ("higher", 0.6, 0.9, 0.5, "shown"),
        ("higher", 0.5, 0.9, 0.5, "undecided"),  # touching the margin decides nothing
        ("higher", 0.1, 0.5, 0.5, "undecided"),
        ("higher", 0.1, 0.4, 0.5, "refuted"),
        ("higher", -0.1, 0.1, 0.0, "undecided"),
        ("lower", -0.9, -0.6, 0.5, "shown"),
        ("lower", -0.9, -0.5, 0.5, "undecided"),
        ("lower", -0.5, 0.2, 0.5, "undecided"),
        ("lower", -0.4, 0.2, 0.5, "refuted"),
        ("equal", -0.4, 0.4, 0.5, "shown"),
        ("equal", -0.4, 0.5, 0.5, "undecided"),
        ("equal", -0.5, 0.4, 0.5, "undecided"),
        ("equal", 0.5, 0.7, 0.5, "undecided"),
        ("equal", 0.6, 0.7, 0.5, "refuted"),
        ("equal", -0.7, -0.6, 0.5, "refuted"),
        ("equal", -0.7, 0.7, 0.5, "undecided"),
    ],
)
def test_rule(direction, low, high, margin, expected):
    assert decide(direction, low, high, margin)[0] == expected


@given(st.sampled_from(["higher", "lower"]), st.floats(-9, 9), st.floats(-9, 9), st.floats(0, 5))
def test_lower_mirrors_higher(direction, one, other, margin):
    low, high = sorted((one, other))
    mirrored = {"higher": "lower", "lower": "higher"}[direction]
    assert decide(direction, low, high, margin)[0] == decide(mirrored, -high, -low, margin)[0]


def test_verdicts_of_measured_differences():
    assert verdict([1.0, 2.0, 3.0]) == "undecided"  # -0.48 to 4.48
    assert verdict([1.9, 2.0, 2.1]) == "shown"  # 1.75 to 2.25
    assert verdict([1.9, 2.0, 2.1], margin=3.0) == "refuted"
    assert verdict([-1.9, -2.0, -2.1]) == "refuted"
    assert verdict([-1.9, -2.0, -2.1], direction="lower") == "shown"
    assert verdict([-0.1, 0.0, 0.1], direction="equal", margin=0.3) == "shown"
    assert verdict([-0.1, 0.0, 0.1], direction="equal", margin=0.2) == "undecided"


def test_equal_differences_on_the_margin_are_undecided_in_spite_of_floating_point():
    assert 0.1 + 0.2 > 0.3
    row = judge(Claim(**{**CLAIM, "margin": 0.3}), results([0.1 + 0.2] * 3, reference=0.0), "tiny")
    assert (row["interval"], row["verdict"]) == ([0.3, 0.3], "undecided")


def test_seeds_are_paired():
    """The spread between seeds is large and shared; only the spread of the differences counts."""
    row = judge(Claim(**CLAIM), results([0.9, 1.0, 1.1]), "tiny")
    assert row["verdict"] == "shown"
    assert (row["difference"], row["interval"], row["n"]) == (1.0, [0.751586, 1.248414], 3)
    assert row["value_interval"][0] < row["reference"] < row["value_interval"][1]


def test_arms_with_different_seeds_are_compared_on_those_they_share():
    measured = results([1.0, 1.1, 0.9, 1.0])
    other = {seed: {"m": 10.0 + seed} for seed in (1, 2, 3, 7)}
    claim = Claim(**{**CLAIM, "reference": {"arm": "alpha-mnist", "metric": "m"}})
    row = judge(claim, {**measured, "alpha-mnist": other}, "tiny")
    assert (row["n"], row["difference"], row["verdict"]) == (3, 1.0, "shown")


def test_fixed_reference():
    row = judge(Claim(**{**CLAIM, "reference": 5}), results([0.0, 0.0, 0.0]), "tiny")
    assert (row["reference"], row["difference"], row["verdict"]) == (5.0, 6.0, "shown")


def test_ratio_is_judged_on_the_log_and_told_as_a_factor():
    measured = {"a": {seed: {"v": 2.0 ** (seed + 1), "r": 2.0**seed} for seed in range(3)}}
    operands = {"value": {"arm": "a", "metric": "v"}, "reference": {"arm": "a", "metric": "r"}}
    for margin, expected in (
        (math.log(1.9), "shown"),
        (math.log(2.1), "refuted"),
        (round(math.log(2), 6), "undecided"),
    ):
        row = judge(Claim(**{**CLAIM, **operands, "compare": "ratio", "margin": margin}), measured, "tiny")
        assert row["verdict"] == expected
    assert row["difference"] == pytest.approx(2, abs=1e-5)
    assert row["margin"] == pytest.approx(2, abs=1e-5)
    spread = {"a": {seed: {"v": math.exp(log), "r": 1.0} for seed, log in enumerate((1.0, 2.0, 3.0))}}
    row = judge(Claim(**{**CLAIM, **operands, "compare": "ratio"}), spread, "tiny")
    assert row["interval"] == pytest.approx([math.exp(-0.484138), math.exp(4.484138)], abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "measured", "reason"),
    [
        ({"presets": ["paper"]}, results([1.0] * 3), "preset paper only"),
        ({"min_seeds": 4}, results([1.0] * 3), "3 of the 4 seeds"),
        ({}, results([1.0]), "1 of the 3 seeds"),
        ({}, {}, "arm alpha-digits: data set absent"),
        ({"value": {"arm": "other", "metric": "x"}}, results([1.0] * 3), "arm other: not in the plan"),
        ({"value": {"arm": "alpha-digits", "metric": "x"}}, results([1.0] * 3), "no metric x for seeds 0, 1, 2"),
        ({}, results([1.0, math.nan, 1.0]), "not finite for seeds 1"),
        ({}, results([1.0, math.inf, 1.0]), "not finite for seeds 1"),
        ({"compare": "ratio"}, results([1.0, 1.0, 1.0], reference=0.0), "positive values"),
        ({"reference": {"arm": "b", "metric": "m"}}, {**results([1.0]), "b": {7: {"m": 1.0}}}, "share no seed"),
    ],
)
def test_not_testable_says_why(changes, measured, reason):
    row = judge(Claim(**{**CLAIM, **changes}), measured, "tiny", {"alpha-digits": "data set absent"})
    assert row["verdict"] == "not testable"
    assert reason in row["reason"]
    json.dumps(row, allow_nan=False)


def test_too_few_seeds_still_tell_what_came_out():
    row = judge(Claim(**{**CLAIM, "min_seeds": 4}), results([0.9, 1.0, 1.1]), "tiny")
    assert (row["n"], row["difference"], row["interval"]) == (3, 1.0, [0.751586, 1.248414])


@pytest.mark.parametrize(("direction", "margin"), [("higher", 0.5), ("lower", 0.5), ("higher", 0.0)])
def test_p_value_is_that_of_students_t_test_at_the_margin(direction, margin):
    values = [0.2, 1.1, 0.7, 1.4]
    edge = margin if direction == "higher" else -margin
    assert p_value(values, direction, margin) == pytest.approx(stats.ttest_1samp(values, edge).pvalue, rel=1e-12)


@pytest.mark.parametrize("shift", [-0.9, -0.35, -0.1, 0.0, 0.2, 0.35, 0.9])
def test_p_value_of_equal_is_twice_the_larger_of_two_one_sided_tests_within_the_band_and_beyond_it_that_of_the_edge(
    shift,
):
    values, band = np.array([-0.1, 0.05, 0.15, -0.1]) + shift, 0.4
    above = stats.ttest_1samp(values, -band, alternative="greater").pvalue
    below = stats.ttest_1samp(values, band, alternative="less").pvalue
    outside = 2 * min(1 - above, 1 - below)
    expected = 2 * max(above, below) if abs(shift) < band else outside
    assert p_value(values, "equal", band) == pytest.approx(expected, rel=1e-9)


def test_p_value_without_spread_is_0_or_on_the_edge_1():
    assert p_value([2.0, 2.0, 2.0], "higher", 0.5) == 0.0
    assert p_value([0.1 + 0.2] * 3, "higher", 0.3) == 1.0
    assert p_value([0.0, 0.0], "equal", 0.5) == 0.0
    with pytest.raises(ValueError, match=r"at least two values, got \[1.0\]"):
        p_value([1.0], "higher", 0.0)


directions = st.sampled_from(["higher", "lower", "equal"])


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=12), directions, st.floats(0.01, 5))
def test_a_claim_is_decided_if_and_only_if_p_is_below_5_percent(differences, direction, margin):
    claim = Claim(**{**CLAIM, "direction": direction, "margin": margin})
    row = judge(claim, results(differences), "tiny")
    assert (row["verdict"] != "undecided") == (row["p_value"] < 0.05)
    # and the p-value of the ledger is that of the data, to the digits told, where rounding of the interval is no matter
    measured = [
        run[claim.value.metric] - run[claim.reference.metric] for run in results(differences)["alpha-digits"].values()
    ]
    assume(np.std(measured, ddof=1) > 1e-3)
    edges = {"higher": [margin], "lower": [-margin], "equal": [-margin, margin]}[direction]
    expected = max(stats.ttest_1samp(measured, edge).pvalue for edge in edges)
    assert row["p_value"] == pytest.approx(expected, rel=0.01, abs=1e-12)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), directions, st.floats(0.01, 5))
def test_the_rule_of_intervals_and_the_p_value_agree_before_anything_is_rounded(values, direction, margin):
    assume(np.std(values, ddof=1) > 1e-3)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    p = p_value(values, direction, margin)
    assume(abs(p - 0.05) > 1e-9)
    assert (decide(direction, low, high, margin)[0] != "undecided") == (p < 0.05)


def test_holm_on_a_textbook_example():
    # Wikipedia, "Holm-Bonferroni method": of p = 0.01, 0.04, 0.03, 0.005 the first and the last are found at 5 %
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.5, 0.6]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for one, p in zip(adjusted, p_values, strict=True):
        assert p <= one <= min(1.0, len(p_values) * p) + 1e-15
    assert [adjusted[i] for i in np.argsort(p_values, kind="stable")] == sorted(adjusted)


def several(*differences, count=None):
    """Facts and results of claims with these differences, and of one that compares counts if asked."""
    claims, runs = [], {seed: {"zero": 0.0} for seed in range(3)}
    for number, values in enumerate(differences):
        claims.append({**CLAIM, "id": f"K{number}", "value": {"arm": "a", "metric": f"m{number}"}})
        claims[-1]["reference"] = {"arm": "a", "metric": "zero"}
        for seed, value in enumerate(values):
            runs[seed][f"m{number}"] = value
    if count is not None:
        claims.append({**CLAIM, "id": "count", "value": {"arm": "a", "metric": "macs"}, "reference": 5.0})
        for run in runs.values():
            run["macs"] = count
    return Facts(**{**FACTS, "claims": claims}), {"a": runs}


def test_holm_over_the_claims_of_a_paper_in_the_ledger():
    weak, strong, none = [1.0, 2.0, 1.6], [1.99, 2.0, 2.01], [-1.0, 0.0, 1.0]
    facts, measured = several(weak, strong, none, weak)
    rows = ledger([facts], measured, "tiny")
    assert [row["verdict"] for row in rows] == ["shown", "shown", "undecided", "shown"]
    assert [row["verdict_holm"] for row in rows] == ["undecided", "shown", "undecided", "undecided"]
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        assert row["p_holm"] == pytest.approx(adjusted, rel=5e-3)
    (alone,) = ledger([several(weak)[0]], measured, "tiny")
    assert alone["verdict_holm"] == "shown" and alone["p_holm"] == alone["p_value"]
    both = ledger([several(weak)[0], several(strong)[0]], measured, "tiny")
    assert both[0]["p_holm"] == both[0]["p_value"], "papers are corrected one by one"


def test_counts_are_facts_that_no_correction_touches_and_that_are_not_expected_to_be_false():
    weak = [1.0, 2.0, 1.6]
    facts, measured = several(weak, weak, count=7.0)
    *others, fact = ledger([facts], measured, "tiny")
    assert (fact["exact"], fact["p_value"], fact["p_holm"], fact["verdict_holm"]) == (True, 0.0, 0.0, "shown")
    without = ledger([several(weak, weak)[0]], measured, "tiny")
    assert [row["p_holm"] for row in others] == [row["p_holm"] for row in without]
    assert chance([*others, fact]) == (2, 1, 0.1)
    facts, measured = several(weak, count=5.0)
    edge = ledger([facts], measured, "tiny")[-1]
    assert (edge["exact"], edge["p_value"], edge["verdict_holm"]) == (True, 1.0, "undecided")


def test_a_constant_difference_of_values_that_vary_is_no_fact():
    facts, measured = several([1.0, 1.0, 1.0])
    for seed, run in measured["a"].items():
        run |= {"zero": float(seed), "m0": seed + 1.0}
    (row,) = ledger([facts], measured, "tiny")
    assert (row["exact"], row["p_value"], row["verdict_holm"]) == (False, 0.0, "shown")
    assert chance([row]).judged == 1


def test_claims_that_are_not_testable_are_in_no_correction():
    weak = [1.0, 2.0, 1.6]
    facts, measured = several(weak, weak)
    facts = Facts(
        **{**FACTS, "claims": [facts.claims[0].model_dump(), {**facts.claims[1].model_dump(), "min_seeds": 9}]}
    )
    judged, absent = ledger([facts], measured, "tiny")
    assert judged["p_holm"] == judged["p_value"]
    assert (absent["p_value"], absent["p_holm"], absent["verdict_holm"]) == (None, None, "not testable")
    assert chance([judged, absent]) == (1, 0, 0.05)


def test_the_ledger_tells_what_is_post_hoc():
    facts = Facts(**{**FACTS, "claims": [CLAIM, {**CLAIM, "id": "K2", "post_hoc": True, "note": "Added after K1."}]})
    assert [row["post_hoc"] for row in ledger([facts], results([0.9, 1.0, 1.1]), "tiny")] == [False, True]


def test_ledger_has_the_form_that_others_rely_on():
    (row,) = ledger([Facts(**FACTS)], results([0.9, 1.0, 1.1]), "tiny")
    assert set(row) >= set(
        "paper id statement place arms metric direction paper_value paper_value_source value reference difference "
        "interval n verdict reason unit preset post_hoc p_value p_holm verdict_holm exact".split()
    )
    assert row["paper"] == "alpha"
    assert row["arms"] == ["alpha-digits"]
    assert row["metric"] == "digits/cascade/score"
    assert row["reference_metric"] == "digits/single/score"


def test_summary_over_seeds():
    told = summary({"a": {0: {"m": 1.0, "bad": 1.0}, 1: {"m": 2.0, "bad": math.nan}, 2: {"m": 3.0, "bad": 1.0}}})
    assert told["a"]["m"] == {"mean": 2.0, "low": -0.484138, "high": 4.484138, "n": 3}
    assert told["a"]["bad"] == {"mean": None, "low": None, "high": None, "n": 3}


def written(folder, **changes):
    path = folder / "alpha" / "facts.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**FACTS, **changes}))
    return path


def test_facts_are_read(tmp_path):
    facts = load_facts(written(tmp_path, oracles=[{"name": "net", "source": "measured", "params": 5, "macs": 7.5}]))
    assert facts.claims[0].value == Operand(arm="alpha-digits", metric="digits/cascade/score")
    assert facts.oracles[0].params == 5


def without(key):
    return {name: value for name, value in CLAIM.items() if name != key}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"stem": "beta"}, ["stem is 'beta'", "expected 'alpha'"]),
        ({"titel": "x"}, ["titel", "unknown key", "did you mean 'title'"]),
        ({"year": "2020"}, ["year is '2020'", "valid integer"]),
        ({"arxiv": 2005.0057}, ["arxiv is 2005.0057", "valid string", "quotes"]),
        ({"official_code": "http://example.org"}, ["official_code", "https://"]),
        ({"claims": []}, ["claims", "at least 1"]),
        ({"claims": [CLAIM, CLAIM]}, ["unique", "K1"]),
        ({"claims": [without("unit")]}, ["claim K1", "unit", "missing"]),
        ({"claims": [without("id")]}, ["claim 1.id", "id", "missing"]),
        ({"claims": [{**CLAIM, "direction": "bigger"}]}, ["claim K1", "direction is 'bigger'", "'higher'", "'equal'"]),
        ({"claims": [{**CLAIM, "margn": 1}]}, ["claim K1", "margn", "unknown key"]),
        ({"claims": [{**CLAIM, "margin": -1.0}]}, ["claim K1", "margin is -1.0", "greater than or equal to 0"]),
        ({"claims": [{**CLAIM, "min_seeds": 1}]}, ["claim K1", "min_seeds is 1"]),
        ({"claims": [{**CLAIM, "presets": ["huge"]}]}, ["claim K1", "'huge'", "'tiny'"]),
        ({"claims": [{**CLAIM, "value": {"arm": "a"}}]}, ["claim K1", "value.metric", "missing"]),
        ({"claims": [{**CLAIM, "reference": "high"}]}, ["claim K1", "reference", "'high'", "number"]),
        ({"claims": [{**CLAIM, "direction": "equal"}]}, ["claim K1", "margin must be positive"]),
        ({"claims": [{**CLAIM, "compare": "ratio", "reference": 0.0}]}, ["claim K1", "positive"]),
        ({"claims": [{**CLAIM, "paper_value_source": None}]}, ["claim K1", "paper_value_source"]),
        ({"claims": [{**CLAIM, "post_hoc": True}]}, ["claim K1", "post_hoc is true", "note must say"]),
        ({"claims": [{**CLAIM, "post_hoc": "yes"}]}, ["claim K1", "post_hoc is 'yes'", "valid boolean"]),
    ],
)
def test_a_mistake_in_a_facts_file_is_named(tmp_path, changes, told):
    with pytest.raises(ValueError) as error:
        load_facts(written(tmp_path, **changes))
    for part in ["alpha/facts.yaml", *told]:
        assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_broken_yaml_is_named(tmp_path):
    path = tmp_path / "alpha.yaml"
    path.write_text("claims: [")
    with pytest.raises(ValueError, match=r"alpha\.yaml: not valid YAML"):
        load_facts(path)


def test_a_claim_must_name_arms_of_the_plan():
    facts = Facts(**FACTS)
    check_plan(facts, ["alpha-digits"], "tiny")
    check_plan(facts, [], "paper")  # not to be judged there
    with pytest.raises(ValueError, match=r"alpha/facts\.yaml: claim K1: arm is 'alpha-digits', .* alpha-mnist"):
        check_plan(facts, ["alpha-mnist"], "tiny")
