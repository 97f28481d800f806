"""What the pool costs and gains, measured against the drivers' own pools on the same server in the same run."""
