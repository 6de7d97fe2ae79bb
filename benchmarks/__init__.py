"""Speed as ratios measured in one run against a named peer or a limit: `make bench`, or `python -m benchmarks`."""
