import csv
import itertools
import json
import math
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from commands import unigan
from scipy import stats

from keras_unigan import aggregation, comparison, paired_tests
from keras_unigan.cli import common
from keras_unigan.config import finite
from keras_unigan.errors import CodedError

NAMES = ("organ", "lesion")
OPTIONS = {"hd95": "pooled", "tolerance": 2.0, "lesion_overlap": 0.1}


def row(subject, modality, name, dice, status="ok", **others):
    scores = dict.fromkeys(aggregation.SCORES, dice) | {"hd95": 20 * (1 - dice), "assd": 1.0}
    where = {"case": f"{subject}_{modality}", "subject": subject, "modality": modality}
    sizes = {"n_true": 9, "n_pred": 9, "unit": "mm", "status": status, "seconds": 1.0}
    return {**where, "name": name, **scores, **sizes, "message": "", **others}


def cohort(offset=0.0, modalities=("ct", "t1"), subjects=8, seed=0):
    """Rows whose Dice is 0.5, noise of each subject, and an offset."""
    rng = np.random.default_rng(seed)
    return [
        row(f"s{i}", m, n, round(float(rng.uniform(0.3, 0.6)) + offset * (1 + i / 100), 6))
        for m, n, i in itertools.product(modalities, NAMES, range(subjects))
    ]


def write_run(folder, rows, known=True, **others):
    content = {"split": "test", "known_modality": known, "options": OPTIONS, "rows": rows}
    folder.mkdir(exist_ok=True)
    path = folder / comparison.FILES[known]
    path.write_text(json.dumps(finite({**content, **others})))
    return str(folder)


def systems_of(tmp_path, **rows):
    return [
        comparison.read_system(write_run(tmp_path / name, found)) for name, found in rows.items()
    ]


def test_a_better_system_wins_everywhere(tmp_path):
    systems = systems_of(tmp_path, a=cohort(0.1), b=cohort())
    result = comparison.compare(systems)
    assert result["systems"] == {name: [str(tmp_path / name)] for name in "ab"}
    dice = [r for r in result["rows"] if r["score"] == "dice"]
    assert [(r["modality"], r["name"]) for r in dice] == list(
        itertools.product(("ct", "t1"), NAMES)
    )
    for one in result["rows"]:
        # Less is better for a distance, and a still wins.
        sign = 1 if one["score"] == "dice" else -1
        assert sign * one["difference"] > 0
        assert (one["wins"], one["ties"], one["losses"], one["n"]) == (8, 0, 0, 8)
        assert (one["rank_biserial"], one["p"]) == (1.0, 2 / 2**8)
        assert one["p_holm"] == pytest.approx(4 * 2 / 2**8)
        assert one["cohen_dz"] > 0
        assert one["low"] <= one["difference"] <= one["high"]
    assert dice[0]["mean_a"] - dice[0]["mean_b"] == pytest.approx(dice[0]["difference"])
    # The other way round everything but p turns over.
    turned = comparison.compare(systems[::-1])["rows"][0]
    assert (turned["losses"], turned["rank_biserial"]) == (8, -1.0)
    assert turned["difference"] == pytest.approx(-dice[0]["difference"])
    assert turned["p"] == dice[0]["p"]


def test_a_run_against_itself_is_all_ties(tmp_path):
    result = comparison.compare(systems_of(tmp_path, a=cohort(), b=cohort()), ("dice",))
    for one in result["rows"]:
        assert (one["ties"], one["wins"], one["p"], one["p_holm"]) == (8, 0, 1.0, 1.0)
        assert (one["difference"], one["low"], one["high"]) == (0.0, 0.0, 0.0)
        assert math.isnan(one["rank_biserial"])


def test_small_numbers_are_said_to_be_small(tmp_path):
    rows = {"a": cohort(0.2, subjects=6), "b": cohort(subjects=6)}
    result = comparison.compare(systems_of(tmp_path, **rows), ("dice",))
    assert min(r["p"] for r in result["rows"]) == 2 / 2**6
    assert min(r["p_holm"] for r in result["rows"]) == 4 * 2 / 2**6  # above .05 at best
    said = " ".join(result["notes"])
    assert "4 of 4 tests have too few subjects (n up to 6)" in said
    assert "the least p of n=6 is 0.031, times 4 tests 0.12" in said
    assert "intervals of n=6 are likely too narrow" in said
    enough = {"c": cohort(0.2, subjects=12), "d": cohort(subjects=12)}
    assert comparison.compare(systems_of(tmp_path, **enough), ("dice",))["notes"] == []


def test_the_unit_is_the_subject(tmp_path):
    def visits(offset):
        rows = [
            row(f"s{i}", "ct", "organ", 0.5 + offset * (1 if v else -0.5), case=f"s{i}_{v}")
            for i, v in itertools.product(range(5), range(3))
        ]
        return rows

    found = comparison.compare(systems_of(tmp_path, a=visits(0.1), b=visits(0.0)), ("dice",))
    (one,) = found["rows"]
    assert (one["n"], one["wins"], one["p"]) == (5, 5, 2 / 2**5)
    assert one["difference"] == pytest.approx((0.1 + 0.1 - 0.05) / 3)


def test_undefined_and_failed_cases(tmp_path):
    a, b = cohort(subjects=4, modalities=("ct",)), cohort(subjects=4, modalities=("ct",))
    nothing = {"dice": None, "hd95": None, "n_true": 0}
    a[0] |= {**nothing, "n_pred": 0, "status": "undefined"}
    b[0] |= {**nothing, "dice": 0.0, "hd95": 90.0, "status": "spurious"}
    a[1] |= {**nothing, "n_pred": 0, "status": "undefined"}
    b[1] |= {**nothing, "n_pred": 0, "status": "undefined"}
    # Nothing is known of a file that nobody can read.
    b[2] |= {"dice": 0.0, "hd95": None, "n_true": None, "unit": None, "status": "KUG-D07"}
    result = comparison.compare(systems_of(tmp_path, a=a, b=b))
    dice, _, hd95, _ = result["rows"]
    for one in (dice, hd95):
        # Rightly leaving it empty beats inventing something, and a score beats a failure.
        assert (one["n"], one["undefined"], one["failed_b"]) == (3, 1, 1)
        assert (one["wins"], one["ties"]) == (2, 1)
    assert dice["mean_a"] == pytest.approx((1 + a[2]["dice"] + a[3]["dice"]) / 3)
    assert hd95["mean_b"] == pytest.approx((90 + 90 + b[3]["hd95"]) / 3)
    said = " ".join(result["notes"])
    assert "Dice, modality told: 1 failed scores count as the worst" in said
    assert "1 pairs undefined for both" in said


def test_a_case_without_a_score_is_counted_and_its_subject_kept(tmp_path):
    """The sensitivity to lesions of a case without any, where a prediction invents one."""
    a, b = (cohort(offset, subjects=4, modalities=("ct",))[:4] for offset in (0.1, 0.0))
    for rows in (a, b):
        rows.append({**rows[0], "case": "s0_again", "n_true": 0, "status": "spurious"})
        rows[-1]["lesion_sensitivity"] = None
    systems = systems_of(tmp_path, a=a, b=b)
    (found,) = comparison.compare(systems, ("lesion_sensitivity",))["rows"]
    assert (found["n"], found["undefined"], found["wins"]) == (4, 1, 4)
    assert found["mean_b"] == pytest.approx(np.mean([r["dice"] for r in b[:4]]))


def test_other_ways_to_make_label_maps_are_told(tmp_path):
    steps = [{"kind": "largest_component"}]
    plain = {"runs": ["a"], "tta": "none", "postprocessing": []}
    more = {"runs": ["b", "c"], "tta": "mirror", "postprocessing": steps}
    for method, count in ((plain, 0), (more, 1)):
        runs = [
            write_run(tmp_path / name, cohort(), method=one)
            for name, one in (("a", plain), ("b", method))
        ]
        result = comparison.compare([comparison.read_system(run) for run in runs], ("dice",))
        said = [note for note in result["notes"] if "not made in one way" in note]
        assert len(said) == count
    ways = "b: mean of 2 runs and --tta mirror and 1 step of post-processing"
    assert f"(a: the network alone; {ways})" in said[0]


def test_names_that_were_not_annotated_are_no_pairs(tmp_path):
    a, b = cohort(modalities=("ct",)), cohort(0.1, modalities=("ct",))
    nobody = dict.fromkeys((*aggregation.SCORES, "n_true", "unit")) | {"status": "unannotated"}
    # Of one name in half of the cases, of the other in all.
    for i in (*range(4), *range(8, 16)):
        a[i] |= nobody
        b[i] |= nobody
    result = comparison.compare(systems_of(tmp_path, a=a, b=b))
    for one, none in zip(result["rows"][::2], result["rows"][1::2], strict=True):
        assert (one["n"], one["losses"], one["undefined"]) == (4, 4, 0)
        assert (none["n"], none["undefined"], none["failed_a"]) == (0, 0, 0)
    assert not any("undefined" in note for note in result["notes"])
    a[0] |= {"n_true": 9, "status": "ok"}
    with pytest.raises(CodedError, match=r"KUG-T07 .*of 9 true voxels and not annotated"):
        comparison.compare(systems_of(tmp_path, a=a, b=b))


def test_distances_of_mixed_units_have_no_numbers(tmp_path):
    a, b = cohort(modalities=("ct",)), cohort(modalities=("ct",))
    for rows in (a, b):
        rows[0]["unit"] = "px"
    result = comparison.compare(systems_of(tmp_path, a=a, b=b), ("hd95", "nsd"))
    assert [(r["name"], r["n"], r["unit"]) for r in result["rows"][:2]] == [
        ("organ", 0, "mixed"),
        ("lesion", 8, "mm"),
    ]
    assert result["rows"][2]["n"] == 8
    assert any("mix mm and pixels" in note for note in result["notes"])


def test_specialists_together_are_one_system(tmp_path):
    unified, ct, t1 = cohort(0.05), cohort(), cohort()
    for rows, own in ((ct, "ct"), (t1, "t1")):
        for one in rows:
            if one["modality"] != own:
                one |= {"status": "KUG-T03", "dice": 0.0}
    for name, rows in {"u": unified, "ct": ct, "t1": t1}.items():
        write_run(tmp_path / name, rows)
    write_run(tmp_path / "u", unified, known=False)
    text = f"individual={tmp_path / 'ct'},{tmp_path / 't1'}"
    systems = [comparison.read_system(t) for t in (str(tmp_path / "u"), text)]
    result = comparison.compare(systems, ("dice",))
    assert {(r["a"], r["b"], r["known_modality"]) for r in result["rows"]} == {
        ("u", "individual", True)
    }
    assert all(r["wins"] == 8 and r["failed_b"] == 0 for r in result["rows"])
    assert any("kept back: not scored for individual" in note for note in result["notes"])
    # Two specialists of one modality are no system, nor is one that lacks a modality.
    for parts in (("ct", "ct"), ("ct", "u")):
        twice = ",".join(str(tmp_path / p) for p in parts)
        with pytest.raises(CodedError, match=r"KUG-T07 x, \w+: found \d of 2 runs that know it"):
            comparison.compare([systems[0], comparison.read_system(f"x={twice}")])


def test_ways_to_predict_are_compared_apart(tmp_path):
    for name, offset in (("a", 0.1), ("b", 0.0)):
        write_run(tmp_path / name, cohort(offset))
        write_run(tmp_path / name, cohort(-offset), known=False)
    systems = [comparison.read_system(str(tmp_path / n)) for n in "ab"]
    rows = comparison.compare(systems, ("dice",))["rows"]
    assert [(r["known_modality"], r["wins"]) for r in rows] == [(True, 8)] * 4 + [(False, 0)] * 4
    # A file alone is one way to predict.
    alone = comparison.read_system(f"a={tmp_path / 'a' / 'metrics_unknown.json'}")
    assert (alone.name, list(alone.scored)) == ("a", [False])
    rows = comparison.compare([alone, systems[1]], ("dice",))["rows"]
    assert {r["known_modality"] for r in rows} == {False}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r, o: r.pop(), "found 1 rows only in the first and 0 only in the second"),
        (lambda r, o: r[0].update(n_true=8), "s0_ct organ of 9 true voxels and 8 true voxels"),
        (lambda r, o: o.update(split="val"), "found split test and val"),
        (lambda r, o: o.update(options={**OPTIONS, "hd95": "max"}), "found options .*'pooled'.*"),
    ],
)
def test_other_cases_are_refused(tmp_path, change, words):
    rows, others = cohort(), {}
    change(rows, others)
    systems = systems_of(tmp_path, a=cohort())
    systems.append(comparison.read_system(write_run(tmp_path / "b", rows, **others)))
    with pytest.raises(CodedError, match=f"KUG-T07 a, b: .*{words}"):
        comparison.compare(systems)


def test_what_is_no_system_is_refused(tmp_path):
    (a,) = systems_of(tmp_path, a=cohort())
    with pytest.raises(CodedError, match="KUG-T02 systems: found 1"):
        comparison.compare([a])
    with pytest.raises(CodedError, match="KUG-T02 systems: found 'a' twice"):
        comparison.compare([a, a])
    with pytest.raises(CodedError, match=r"KUG-T04 .*nowhere: found no scores"):
        comparison.read_system(str(tmp_path / "nowhere"))
    with pytest.raises(CodedError, match="KUG-T02 x=: found no run"):
        comparison.read_system("x=")
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(CodedError, match=r"KUG-D08 .*found no known_modality, rows, split"):
        comparison.read_system(str(tmp_path / "odd.json"))
    b = comparison.read_system(write_run(tmp_path / "b", cohort(), known=False))
    with pytest.raises(CodedError, match="KUG-T04 a b: found no way to predict"):
        comparison.compare([a, b])
    twin = comparison.read_system(f"b={tmp_path / 'a'}")
    for options, words in ((("dise",), "--score: found 'dise'"), (("dice",), "--alpha: found 2")):
        with pytest.raises(CodedError, match=f"KUG-T02 {words}"):
            comparison.compare([a, twin], options, alpha=2)


@pytest.mark.parametrize("seed", range(5))
def test_wilcoxon_equals_scipy(seed):
    rng = np.random.default_rng(seed)
    d = rng.normal(0.3, 1, 9 + seed)
    assert paired_tests.wilcoxon(d)[0] == pytest.approx(stats.wilcoxon(d, method="exact").pvalue)
    # With ties every sign is tried; zeros are left out by both.
    tied = np.array([1, 1, -1, 2, 3, 0, *rng.integers(-2, 3, 2)], float)
    every = stats.PermutationMethod(n_resamples=math.inf)
    expected = stats.wilcoxon(tied[tied != 0], method=every).pvalue
    assert paired_tests.wilcoxon(tied)[0] == pytest.approx(expected)
    many = rng.normal(0.1, 1, 400)
    expected = stats.wilcoxon(many, method="approx").pvalue
    assert paired_tests.wilcoxon(many)[0] == pytest.approx(expected)
    # Just below the bound the exact test agrees with what is used above it.
    some = many[: paired_tests.EXACT]
    expected = stats.wilcoxon(some, method="approx").pvalue
    assert paired_tests.wilcoxon(some)[0] == pytest.approx(expected, rel=0.05)


def test_effect_sizes_of_worked_differences():
    found = paired_tests.paired_statistics([0.1, 0.2, -0.3, 0.4, 0.0])
    # Ranks 1, 2, 3, 4: seven for, three against.
    assert found["rank_biserial"] == pytest.approx((7 - 3) / 10)
    assert (found["wins"], found["ties"], found["losses"]) == (3, 1, 1)
    assert found["cohen_dz"] == pytest.approx(0.08 / np.std([0.1, 0.2, -0.3, 0.4, 0], ddof=1))
    assert found["p"] == 0.625
    turned = paired_tests.paired_statistics([0.1, 0.2, -0.3, 0.4, 0.0], sign=-1)
    assert turned["rank_biserial"] == pytest.approx(-0.4)
    one, none = paired_tests.paired_statistics([0.1]), paired_tests.paired_statistics([])
    assert (one["p"], one["least_p"]) == (1.0, 1.0)
    assert math.isnan(one["low"])
    assert math.isnan(none["difference"])
    same = paired_tests.paired_statistics([0.1, 0.1, 0.1])
    assert (same["low"], same["high"]) == pytest.approx((0.1, 0.1))


def test_interval_covers_the_mean():
    rng, inside = np.random.default_rng(1), 0
    for trial in range(40):
        found = paired_tests.paired_statistics(rng.normal(0.2, 1, 25), seed=trial)
        inside += found["low"] <= 0.2 <= found["high"]
    assert inside >= 34  # 38 are expected


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@hypothesis.given(p_values)
def test_holm_never_lowers_and_never_reorders(values):
    found = paired_tests.holm(values)
    assert all(p <= q <= 1 for p, q in zip(values, found, strict=True))
    order = np.argsort(values)
    assert np.all(np.diff(np.array(found)[order]) >= 0)
    assert min(found) == pytest.approx(min(1, len(values) * min(values)))


def test_holm_of_worked_numbers():
    assert paired_tests.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired_tests.holm([]) == []


def test_command(tmp_path, capsys):
    a, b = (write_run(tmp_path / n, cohort(o)) for n, o in (("a", 0.1), ("b", 0.0)))
    assert unigan("compare", a, b, "--json") == 0
    result = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert len(result["rows"]) == 8
    path = tmp_path / "out" / "comparison.csv"
    assert unigan("compare", f"ours={a}", b, "--score", "nsd", "-o", path) == 0
    said = capsys.readouterr().out
    assert "NSD, ours against b, modality told" in said
    # All numbers are there in full, wherever they are printed to.
    rows = [line.split("│")[1:-1] for line in said.splitlines() if line.startswith("│")]
    assert [[part.strip() for part in row[:3]] for row in rows] == [
        [m, n, "8"] for m in ("ct", "t1") for n in NAMES
    ]
    assert [row[-2].strip() for row in rows] == ["0.031"] * 4
    assert f"Wrote {path}" in said
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == ["organ", "lesion"] * 2
    assert float(lines[0]["p_holm"]) == pytest.approx(4 * 2 / 2**8)
    assert unigan("compare", a, b, "-o", path) == 2
    assert "KUG-E02" in capsys.readouterr().err
    assert unigan("compare", a, b, "-o", tmp_path / "x.txt") == 2
    write_run(tmp_path / "c", cohort()[1:])
    assert unigan("compare", a, tmp_path / "c") == 3
    assert capsys.readouterr().err.splitlines()[-1].startswith("KUG-T07")


def test_a_table_that_is_too_wide_is_printed_in_parts(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"COLUMNS": "44", "LINES": "25", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    heads = ("modality", "name", *(f"score {n}" for n in range(6)))
    rows = [("ct", "lesion", *(0.1 * n for n in range(6))), ("t1", "organ", *[1.0] * 6)]
    common.table("Scores", heads, rows, keys=2)
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said)) <= 44
    assert sum(line.startswith("Scores") for line in said) == 3
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in said if line.startswith("│")]
    for modality, expected in (("ct", [f"{0.1 * n:.3f}" for n in range(6)]), ("t1", ["1.000"] * 6)):
        assert [value for c in cells if c[0] == modality for value in c[2:]] == expected


def test_comparing_needs_no_tensorflow(tmp_path):
    a, b = (write_run(tmp_path / n, cohort()) for n in "ab")
    code = (
        "import sys; from keras_unigan import comparison as c;"
        f"c.compare([c.read_system(p) for p in ({a!r}, {b!r})]);"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
