"""`loopaware-pool audit`: find what a pool leaves open when many tasks use it, or what a script does."""
