"""Train members of the ensemble, as a Ray job: `ray job submit --working-dir . -- python jobs/train.py ...`.

The options are those of `raytrain train`; it runs on the cluster that runs the job.
"""

from raytrain.cli import job, leave

if __name__ == "__main__":
    leave(job("train"))
