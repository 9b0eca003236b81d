"""The live page: observes a server, and shows it in a browser. It changes nothing.

`watch` records events, without I/O or clocks, and makes frames of them; `feed` sends these, and the
page's files, to browsers.
"""
