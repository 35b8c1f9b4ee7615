"""The record of a trial: its result from the history of its epochs."""

from kasthuri_ray.tuning.trial_record import summarize_history

AP = "val.average_precision"


def row(epoch: int, score: float, loss: float) -> dict:
    return {"epoch": epoch, "val.loss": loss, AP: score, "seconds": 2.0, "tiles_per_second": 10.0 * epoch}


def test_a_history_is_summarized_by_its_best_epoch():
    history = [row(1, 0.4, 0.3), row(2, 0.6, 0.6), row(3, 0.6, 0.5), row(4, 0.5, 0.5)]
    assert summarize_history(history, AP) == {
        **{"score": 0.6, "best_epoch": 3, "epochs": 4, "seconds": 8.0, "tiles_per_second": 30.0}
    }
    assert summarize_history(history, "val.loss")["best_epoch"] == 1
    assert summarize_history([], AP) == {}
