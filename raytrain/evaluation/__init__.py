"""Evaluation: masks counted against labels, scores with intervals, reports, pictures to review.

Works on one pair of masks at a time, whatever runs the pairs side by side. Must not know Ray.
"""
