"""What scoring costs, and whether its masks are those of the straightforward way; each part is a table.

    python -m tests.bench.score ensemble [--members all] [--runs 5]
    python -m tests.bench.score agreement --ensemble URI --archive DIR
    python -m tests.bench.score peer
    python -m tests.bench.score pipeline [--with-ray]

`--machine NAME` writes the tables to infra/benchmarks, too. Figures of a busy machine mislead: what is compared is run
in turn, and ratios and medians count.
"""

from __future__ import annotations

import argparse

from tests.bench import score_agreement, score_ensemble, score_peer, score_pipeline

PARTS = {"ensemble": score_ensemble, "agreement": score_agreement, "peer": score_peer, "pipeline": score_pipeline}
"""Each has `DOC`, `add_options(parser)` and `main(options)`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, module in PARTS.items():
        options = parts.add_parser(name, description=module.__doc__)
        options.add_argument("--machine", help="write infra/benchmarks/<date>-MACHINE-score-<part>.md")
        options.add_argument("--threads", type=int, default=2)
        module.add_options(options)
    chosen = parser.parse_args()
    PARTS[chosen.part].main(chosen)


if __name__ == "__main__":
    main()
