"""Tail latency, real and simulated: experiments and figures."""
