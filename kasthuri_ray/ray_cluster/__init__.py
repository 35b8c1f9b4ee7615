"""Ray as the jobs use it: connecting to a cluster, its resources and nodes, messages from workers, output paths.

Start reading at `connection`, which attaches to a cluster or starts Ray; `driver` wraps the work that a job gives to
Ray. `cluster_check` is what `jobs/check.py` runs; `fault_report` is its --report.
"""
