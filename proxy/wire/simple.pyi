from foreshard.proxy.wire.segment import Segment

class Simple(Segment):
    queries: int
