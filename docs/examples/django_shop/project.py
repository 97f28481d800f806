"""The rest of a Django project, in one file: settings, URLs, and the applications for ASGI and WSGI servers."""

import database
import django
import views
from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.urls import path

settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF="project", SECRET_KEY="for this example")
django.setup()
urlpatterns = [
    path("double/<int:number>", views.double),
    path("double/<int:number>/in-sync", views.double_in_sync),
    path("slow", views.slow),
]
wsgi = get_wsgi_application()
django_asgi = get_asgi_application()


async def asgi(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Django's application, and the lifespan, which Django leaves out: the pool is closed when the server stops."""
    if scope["type"] != "lifespan":
        await django_asgi(scope, receive, send)
        return
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await database.pool.close()
    await send({"type": "lifespan.shutdown.complete"})
