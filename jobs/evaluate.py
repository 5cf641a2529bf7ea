"""Hold masks against labels, as a Ray job: `ray job submit --working-dir . -- python jobs/evaluate.py ...`.

The options are those of `raytrain evaluate`; it runs on the cluster that runs the job.
"""

import sys

from raytrain.cli import job

if __name__ == "__main__":
    sys.exit(job("evaluate"))
