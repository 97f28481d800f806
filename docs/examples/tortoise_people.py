"""tortoise-orm on our pool: each line of the input is the name of a person, saved in an `asyncio.run` of its own."""

import asyncio
import os
import sys

import loopaware_pool

loopaware_pool.install()  # before tortoise imports the driver

from tortoise import Tortoise, fields
from tortoise.models import Model

URL = os.environ["DATABASE_URL"].replace("postgresql://", "asyncpg://") + "?minsize=1&maxsize=4"


class Person(Model):
    id = fields.IntField(primary_key=True)
    name = fields.TextField()


async def prepare() -> None:
    await Tortoise.init(db_url=URL, modules={"models": [__name__]}, _enable_global_fallback=True)
    await Tortoise.generate_schemas(safe=True)


async def save(name: str) -> int:
    await Person.create(name=name)
    return await Person.all().count()


if __name__ == "__main__":
    asyncio.run(prepare())
    print("ready", flush=True)
    for line in sys.stdin:
        print(asyncio.run(save(line.strip())), flush=True)
