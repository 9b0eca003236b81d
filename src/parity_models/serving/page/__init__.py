"""The live page: what a server does, as one look tells it, in a browser or by `parm top`.

`watch.py` is told what happens and draws conclusions, without I/O or clocks; `sampler.py` makes
frames (`frames.py`) of it now and then; `feed.py` hands them to who watches; `routes.py` serves
them, and the files of the page itself, over HTTP.
"""
