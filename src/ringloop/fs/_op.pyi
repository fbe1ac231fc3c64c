from ringloop._driver.base import Sink

class Op(Sink):
    async def wait(self) -> None: ...
