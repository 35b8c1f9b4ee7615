"""Segmentation of a full volume: a trained network runs on its blocks in Ray actors, and a stopped job resumes.

Read `segment` first: it runs a job from its settings to its last phase. `phases` says which phases there are and how
their blocks are made, `block_worker` is what an actor runs; `block_scheduler` and `actor_pool` decide which actor gets
a block, and what happens if it fails.
"""
