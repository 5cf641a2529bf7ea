"""Rank labels, apply decisions, see their effect: `ray job submit --working-dir . -- python jobs/review.py ...`.

The commands and options are those of `raytrain review`; it runs on the cluster that runs the job.
"""

from raytrain.cli import job, leave

if __name__ == "__main__":
    leave(job("review"))
