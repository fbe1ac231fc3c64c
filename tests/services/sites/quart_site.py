from quart import Quart, request, websocket

import crowd
from telling import telling

site = Quart("site")


@site.get("/hello")
async def hello():
    return "hello"


@site.post("/echo")
async def echo():
    return await request.get_data()


@site.get("/stream")
async def stream():
    return crowd.lines()


@site.get("/broken")
async def broken():
    raise ZeroDivisionError


@site.websocket("/chat")
async def chat():
    while True:
        await websocket.send(await websocket.receive())


app = telling(site)
