"""The loop that served a response, in a header of it, whatever the framework is."""

import asyncio


def telling(app):
    async def told(scope, receive, send):
        async def sending(message):
            if message["type"] == "http.response.start":
                loop = repr(asyncio.get_running_loop()).encode()
                message = {**message, "headers": [*message.get("headers", ()), (b"x-loop", loop)]}
            await send(message)

        await app(scope, receive, sending if scope["type"] == "http" else send)

    return told
