"""An RQ worker that imports the jobs, and asks the database, before it forks: `python rq_worker.py`."""

import os

import rq_jobs
from redis import Redis
from rq import Worker

if __name__ == "__main__":
    print("the database answers", rq_jobs.squares(1), flush=True)
    Worker(["default"], connection=Redis.from_url(os.environ["REDIS_URL"])).work()
