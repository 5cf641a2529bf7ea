"""Tiles: chips found in an archive, the shard format and its index, folds, the order of an epoch, the torch dataset.

Must not know models or Ray.
"""
