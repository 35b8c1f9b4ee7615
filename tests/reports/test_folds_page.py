"""The page of a training by folds shows the pooled scores and those of each fold, in one file."""

from kasthuri_ray.metrics import thresholds, voxel_scores
from kasthuri_ray.reports.folds_page import FoldRow, FoldsReport, folds_page


def test_the_page_shows_each_fold_and_the_pooled_scores(random_prediction, make_object_metrics, page_text):
    counts, _ = random_prediction(0.5)
    outcomes = thresholds.outcomes_at(counts.by_class[0], 0.5)
    test = voxel_scores.split_metrics(counts, [0.5])
    pooled = test | {"objects": make_object_metrics(num_true=12, num_predicted=16, overlapping=8)}
    rows = []
    for k in range(4):
        objects = make_object_metrics(num_true=3, num_predicted=4, overlapping=k)
        metrics = test | {"objects": objects, "foreground_f1": 0.5 + k / 100, "threshold": 0.25}
        rows.append(FoldRow(f"fold_{k}", f"0:20,0:{k + 5},0:9", metrics))
    report = FoldsReport("vnc", "synapse", "UNet_2D", {"test": pooled, "warnings": ["No."]}, rows, counts, [outcomes])
    report.view_flags = ["--run", "vnc/fold_0"]
    page = folds_page(report)
    text = page_text(page)
    assert "The networks find 8 of 12 synapses; of the 16 that they mark, 8 are correct." in text
    assert f"F1 {test['foreground_f1']:.3f} pooled over the folds" in text
    for k, row in enumerate(rows):
        assert f"{row.name} {row.box} {0.5 + k / 100:.3f}" in text
        assert f"0.25 3 {k} 4" in text
    assert "share a voxel (overlap) 8 of 12" in text
    assert "No." in text
    assert "python jobs/view.py --run vnc/fold_0" in text
    assert "http" not in page.replace("http://www.w3.org", "")
