"""Training tiles: the small boxes of image and annotation on which a network trains and is evaluated.

`sampling` draws and reads them and is the module to read first. `splits` opens the volumes of a task, `streaming` reads
tiles ahead with Ray Data, and `augmentation` changes them at random.
"""
