from foreshard.proxy.wire.carrying import Carrying

class Simple(Carrying):
    queries: int
