import asyncio

from aiohttp import WSMsgType, web

import crowd


async def hello(request):
    return web.Response(text="hello")


async def echo(request):
    return web.Response(body=await request.read())


async def stream(request):
    response = web.StreamResponse()
    await response.prepare(request)
    async for line in crowd.lines():
        await response.write(line)
    return response


async def broken(request):
    raise ZeroDivisionError


async def wait(request):
    await crowd.wait()
    return web.Response(text="waited")


async def state(request):
    return web.Response(text=crowd.state())


async def publish(request):
    crowd.publish(await request.text())
    return web.Response()


async def events(request):
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    with crowd.member() as queue:
        await response.write(b"data: welcome\n\n")
        while (text := await queue.get()) != "end":
            await response.write(f"data: {text}\n\n".encode())
    return response


async def chat(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        assert message.type is WSMsgType.TEXT
        await socket.send_str(message.data)
    return socket


async def listen(request):
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    with crowd.member() as queue:
        await socket.send_str("welcome")
        while (text := await queue.get()) != "end":
            await socket.send_str(text)
    await socket.close()
    return socket


async def tell(request, response):
    response.headers["x-loop"] = repr(asyncio.get_running_loop())


app = web.Application()
app.on_response_prepare.append(tell)
for view in (hello, stream, broken, wait, state, events, chat, listen):
    app.router.add_get(f"/{view.__name__}", view)
for view in (echo, publish):
    app.router.add_post(f"/{view.__name__}", view)
