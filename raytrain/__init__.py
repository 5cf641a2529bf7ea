"""raytrain: train an ensemble of U-Nets that finds clouds in satellite imagery, and score archives with it, on Ray.

Data goes one way: archive -> tile shards -> members -> ensemble -> masks -> scores and review.
"""

__version__ = "0.1.0"
