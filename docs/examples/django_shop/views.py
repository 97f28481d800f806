"""Async views, and a sync view that calls the same code through asgiref."""

import database
from asgiref.sync import async_to_sync
from django.http import HttpRequest, JsonResponse


async def double(request: HttpRequest, number: int) -> JsonResponse:
    return JsonResponse({"answer": await database.double(number)})


def double_in_sync(request: HttpRequest, number: int) -> JsonResponse:
    return JsonResponse({"answer": async_to_sync(database.double)(number)})


async def slow(request: HttpRequest) -> JsonResponse:
    await database.sleep(float(request.GET["seconds"]))
    return JsonResponse({"answer": "done"})
