"""Search settings for a member, as a Ray job: `ray job submit --working-dir . -- python jobs/tune.py ...`.

The options are those of `raytrain tune`; it runs on the cluster that runs the job.
"""

from raytrain.cli import job, leave

if __name__ == "__main__":
    leave(job("tune"))
