from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute

import crowd
from telling import telling


async def hello(request):
    return PlainTextResponse("hello")


async def echo(request):
    return Response(await request.body())


async def stream(request):
    async def lines():
        async for line in crowd.lines():
            yield line

    return StreamingResponse(lines())


async def broken(request):
    raise ZeroDivisionError


async def wait(request):
    await crowd.wait()
    return PlainTextResponse("waited")


async def state(request):
    return PlainTextResponse(crowd.state())


async def publish(request):
    crowd.publish((await request.body()).decode())
    return PlainTextResponse("")


async def events(request):
    async def lines():
        with crowd.member() as queue:
            yield "data: welcome\n\n"
            while (text := await queue.get()) != "end":
                yield f"data: {text}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream")


async def chat(socket):
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


async def listen(socket):
    await socket.accept()
    with crowd.member() as queue:
        await socket.send_text("welcome")
        while (text := await queue.get()) != "end":
            await socket.send_text(text)
    await socket.close()


app = telling(
    Starlette(
        routes=[
            Route("/hello", hello),
            Route("/echo", echo, methods=["POST"]),
            Route("/stream", stream),
            Route("/broken", broken),
            Route("/wait", wait),
            Route("/state", state),
            Route("/publish", publish, methods=["POST"]),
            Route("/events", events),
            WebSocketRoute("/chat", chat),
            WebSocketRoute("/listen", listen),
        ]
    )
)
