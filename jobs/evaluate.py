"""Hold masks against labels, as a Ray job: `ray job submit --working-dir . -- python jobs/evaluate.py ...`.

The options are those of `raytrain evaluate`; it runs on the cluster that runs the job.
"""

from raytrain.cli import job, leave

if __name__ == "__main__":
    leave(job("evaluate"))
