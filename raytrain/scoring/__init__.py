"""Scoring: the ensemble, blending of windows, masks of chips and scenes, the ledger of what is done.

Must not know Ray.
"""
