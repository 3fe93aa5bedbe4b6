from foreshard.proxy.wire.gather import Gather

class Away(Gather):
    claimed: dict[int, int] | None
    key_homes: dict[int, int] | None
