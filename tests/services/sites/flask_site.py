"""A WSGI application: its requests run in threads, its bodies pass through the loop."""

from a2wsgi import WSGIMiddleware
from flask import Flask, request

from telling import telling

site = Flask("site")


@site.get("/hello")
def hello():
    return "hello"


@site.post("/echo")
def echo():
    return request.get_data()


@site.get("/stream")
def stream():
    return (f"{number}\n" for number in range(5))


@site.get("/broken")
def broken():
    raise ZeroDivisionError


app = telling(WSGIMiddleware(site))
