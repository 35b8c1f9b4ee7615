"""Segmentation of a full volume: a trained network runs on its blocks in Ray actors, and a stopped job resumes.

Read `segment` first: it runs a job from its settings to its last phase. `block_worker` is what an actor does with one
block; `block_scheduler` and `actor_pool` decide which actor gets it, and what happens if it fails.
"""
