"""The compiled I/O shell of the relay: sockets, frontends, backends, pools."""
