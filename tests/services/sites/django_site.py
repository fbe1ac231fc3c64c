"""Async views and the ORM's async half, with a database in the server's folder."""

import django
from django.conf import settings

settings.configure(
    DEBUG=False,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="of the test",
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite"}},
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)
django.setup()

from django.contrib.auth.models import Group
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

import crowd
from telling import telling


async def hello(request):
    return HttpResponse("hello")


async def echo(request):
    return HttpResponse(request.body)


async def stream(request):
    return StreamingHttpResponse(crowd.lines())


async def broken(request):
    raise ZeroDivisionError


async def rows(request):
    await Group.objects.all().adelete()
    for number in range(10):
        await Group.objects.acreate(name=f"{number}")
    await Group.objects.filter(name="3").adelete()
    names = [group.name async for group in Group.objects.order_by("name")]
    return HttpResponse(",".join(names))


urlpatterns = [
    path("hello", hello),
    path("echo", echo),
    path("stream", stream),
    path("broken", broken),
    path("rows", rows),
]
call_command("migrate", verbosity=0)
app = telling(get_asgi_application())
