"""tortoise-orm: models are saved and read, in a transaction and outside. Its clients make pools of both drivers."""

from __future__ import annotations

import asyncio
import os
import sys

from tortoise import Tortoise, fields
from tortoise.models import Model
from tortoise.transactions import in_transaction


class Person(Model):
    id = fields.IntField(primary_key=True)
    name = fields.TextField()


def url(scheme):
    return os.environ["DSN"].replace("postgresql://", f"{scheme}://")


async def start(scheme, **options):
    await Tortoise.init(db_url=url(scheme), modules={"models": [__name__]}, **options)
    await Tortoise.generate_schemas(safe=True)


async def main(scheme):
    await start(scheme)
    await Person.create(name="Ada")
    try:
        async with in_transaction() as connection:
            await Person.create(name="nobody", using_db=connection)
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    async with in_transaction() as connection:
        await Person.create(name="Grace", using_db=connection)
    await asyncio.gather(*(Person.create(name=f"number {number}") for number in range(10)))
    print(scheme, await Person.all().count(), await Person.all().order_by("name").values_list("name", flat=True))
    await Tortoise.close_connections()


async def count():
    print(await Person.all().count())


if __name__ == "__main__":
    if sys.argv[2:] == ["loops"]:
        asyncio.run(start(sys.argv[1], _enable_global_fallback=True))
        for _ in range(3):
            asyncio.run(count())
    else:
        asyncio.run(main(sys.argv[1]))
