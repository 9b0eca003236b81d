"""The live page: observes a server, and shows it in a browser. It changes nothing.

`watch` keeps what happened, without I/O or clocks, and makes frames of it; `feed` sends the frames,
and the page's files, to browsers.
"""
