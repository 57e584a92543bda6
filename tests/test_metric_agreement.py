"""Other implementations agree with ours, as docs/metrics.md says."""

import metric_agreement
import pytest

LIMIT = 1e-5


@pytest.fixture(autouse=True)
def others():
    for package in ("SimpleITK", "medpy.metric", "surface_distance"):
        pytest.importorskip(package)


def check(heading, pairs):
    """Exact where definitions are the same; and the committed rows are what comes out."""
    found, count = metric_agreement.differences(pairs)
    for name, keys in metric_agreement.EXACT.items():
        assert {key: found[name][key] for key in keys if found[name][key] >= LIMIT} == {}
    text = metric_agreement.section(metric_agreement.committed(), heading)
    assert text.startswith(f"{count} pairs**")
    for key, title in metric_agreement.ROWS.items():
        cells = [metric_agreement.cell(found[n].get(key)) for n in metric_agreement.OTHERS]
        assert f"| {title} | {' | '.join(cells)} |" in text


def test_random_masks():
    check("random masks", metric_agreement.random_pairs())


def test_analytic_shapes():
    check("analytic shapes", metric_agreement.shapes())


@pytest.mark.slow
def test_real_label_maps(unigan_data):
    check("real label maps", metric_agreement.real_pairs(unigan_data))


def test_a_wrong_metric_would_be_found(monkeypatch):
    true = metric_agreement.metrics.hd95
    monkeypatch.setattr(metric_agreement.metrics, "hd95", lambda *a: true(*a) * 1.001)
    with pytest.raises(AssertionError, match="hd95_pooled"):
        check("analytic shapes", metric_agreement.shapes())
