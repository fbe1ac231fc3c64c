from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse

import crowd
from telling import telling

site = FastAPI()


@site.get("/hello", response_class=PlainTextResponse)
def hello():  # in a thread
    return "hello"


@site.post("/echo")
async def echo(request: Request):
    return Response(await request.body())


@site.get("/stream")
async def stream():
    return StreamingResponse(crowd.lines())


@site.get("/broken")
async def broken():
    raise ZeroDivisionError


@site.websocket("/chat")
async def chat(socket: WebSocket):
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


app = telling(site)
