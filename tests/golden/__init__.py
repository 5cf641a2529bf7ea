"""Programs that measure: `python -m tests.bench.NAME`. Each prints a table; `--write MACHINE` keeps it, dated."""
