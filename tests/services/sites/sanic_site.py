import asyncio

from sanic import Sanic
from sanic.response import raw, text

import crowd

app = Sanic("site", configure_logging=False)


@app.on_response
async def tell(request, response):
    response.headers["x-loop"] = repr(asyncio.get_running_loop())


@app.get("/hello")
async def hello(request):
    return text("hello")


@app.post("/echo")
async def echo(request):
    return raw(request.body)


@app.get("/stream")
async def stream(request):
    response = await request.respond()
    async for line in crowd.lines():
        await response.send(line)
    await response.eof()


@app.get("/broken")
async def broken(request):
    raise ZeroDivisionError


@app.websocket("/chat")
async def chat(request, socket):
    while (message := await socket.recv()) is not None:
        await socket.send(message)


@app.get("/wait")
async def wait(request):
    await crowd.wait()
    return text("waited")


@app.get("/state")
async def state(request):
    return text(crowd.state())
