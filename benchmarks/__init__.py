"""What the pool costs and gains, measured against asyncpg's own pool on the same server in the same run."""
