"""Membranes and synapses in electron microscopy of the brain, at the size of whole data sets.

`training` trains a U-Net with Ray Train on tiles of annotated volumes, `tuning` searches its settings with Ray Tune,
`segmentation` runs the network over a volume of any size with Ray actors, and `evaluation` compares the result with an
annotation. They build on `volumes` (where voxels come from), `tiles`, `models`, `inference`, `metrics`, `output` and
`reports`. `config` holds every setting once, `storage` the files of a run, and `ray_cluster` the connection to Ray.

Each job in `jobs/` turns its command line into one call; start reading at `jobs/train.py`.
"""
