"""Rasters: bands and their scales, normalisation, windows, reads and writes, generated imagery.

Must not know training, shards or Ray.
"""
