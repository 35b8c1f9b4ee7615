"""Training of one network on the workers of Ray Train, from the settings to the report of the finished run.

`train` checks everything and starts the workers; read it first, then `worker`, which follows the events of a run in
order. `learner` is one epoch in plain torch, without Ray.
"""
