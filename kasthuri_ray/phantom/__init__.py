"""The phantom: a synthetic cortex with membranes and synapses, as pure functions of a seed and a position.

It is what `phantom://` volumes show, for demonstrations and tests without data. Read `section.py` first: it paints one
square of a section from the cells in `cells.py` and the random numbers in `noise.py`.
"""
