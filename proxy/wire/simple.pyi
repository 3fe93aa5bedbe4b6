from foreshard.proxy.wire.extended import Extended

class Simple(Extended):
    queries: int
