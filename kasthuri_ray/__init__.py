"""Membranes and synapses in electron microscopy of the brain, at the size of whole data sets.

`volumes` says where voxels come from, `tiles` how training tiles are cut from them, `models` what the network is,
`training` how it learns (`fit` is Ray Train around `loop`), `segmentation` how it is run over a volume of any size
(`segment` drives the actors), `evaluation` how good it is, and `reports` what a person
looks at afterwards. `config` holds every setting once, `geometry` the boxes, `storage` the files that a run leaves.
The jobs in `jobs/` turn a command line into one call each; start reading at `jobs/train.py`.
"""
