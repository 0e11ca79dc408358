"""What `jobs/benchmark.py` measures, a module per part of the road; `figures` is how."""
