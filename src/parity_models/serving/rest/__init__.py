"""The Open Inference Protocol over REST: its messages, tensors in them, and the service.

`service.py` answers requests over a frontend; `serving/http.py` carries them.
"""
