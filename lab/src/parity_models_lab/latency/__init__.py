"""Tail latency, real and simulated: experiments, figures, targets."""
