"""An experiment file whose trials take seconds."""

SMALL = """
title = "Small"
axis = "rate"
points = [{ rate = 300 }]
real_queries = 100
[setting]
instances = 2
shuffles = 1
service = { type = "constant", seconds = 0.002 }
delay = { type = "constant", seconds = 0.01 }
[[series]]
label = "equal resources"
policy = { name = "equal-resources" }
[[series]]
label = "parity, shared pool"
policy = { name = "parity", max_group_wait = 0.005 }
"""
