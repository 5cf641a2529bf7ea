"""Look at a cluster from the inside, as a Ray job: `ray job submit --working-dir . -- python jobs/doctor.py ...`.

The options are those of `raytrain doctor`; it runs on the cluster that runs the job.
"""

from raytrain.cli import job, leave

if __name__ == "__main__":
    leave(job("doctor"))
