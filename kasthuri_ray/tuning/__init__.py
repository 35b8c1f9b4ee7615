"""Hyperparameter search: many trials of training with Ray Tune, compared on a leaderboard.

Read `tune.py` first: it runs a sweep from start to finish. `sweep_plan.py` decides what a sweep does,
`sweep_trials.py` starts its trials, `trial.py` trains one, and `leaderboard.py` is the record from which it resumes.
"""
