"""Hyperparameter search: many trials of training with Ray Tune, compared on a leaderboard.

Read `tune.py` first: it runs a sweep from start to finish. `sweep_plan.py` decides what a sweep does, `trial.py` trains
one trial, and `leaderboard.py` is the record from which a sweep resumes.
"""
