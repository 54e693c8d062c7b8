"""A model measured and shown: greedy and sampled accuracy with intervals, and single samples. Never guided,
unless a sample is asked for with guidance. `public.py` is for Python, `commands/` for the command line."""
