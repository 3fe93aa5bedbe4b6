from foreshard.proxy.wire.merging import Merging

class Simple(Merging):
    queries: int
