"""Hash shards or an ensemble again, as a Ray job: `ray job submit --working-dir . -- python jobs/verify.py ...`.

The options are those of `raytrain verify`; it runs on the cluster that runs the job.
"""

from raytrain.cli import job, leave

if __name__ == "__main__":
    leave(job("verify"))
