"""The Open Inference Protocol over REST: its messages, tensors in them, and the service.

`service.py` answers requests over a frontend, whatever carries them: `serving/http.py` over sockets
of its own, `asgi.py` in another server.
"""
