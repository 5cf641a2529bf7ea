"""Turn chips into tile shards, as a Ray job: `ray job submit --working-dir . -- python jobs/shard.py ...`.

The options are those of `raytrain shard`; it runs on the cluster that runs the job.
"""

from raytrain.cli import job, leave

if __name__ == "__main__":
    leave(job("shard"))
