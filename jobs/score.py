"""Score chips, scenes or shards, as a Ray job: `ray job submit --working-dir . -- python jobs/score.py ...`.

The options are those of `raytrain score`; it runs on the cluster that runs the job.
"""

from raytrain.cli import job, leave

if __name__ == "__main__":
    leave(job("score"))
