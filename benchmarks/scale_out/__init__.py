"""`python -m benchmarks.scale_out`: where pools alone stop, as machines are added: measured, and simulated."""
