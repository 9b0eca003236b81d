"""The scheduler, sans-I/O: events in, actions out, time an argument.

`core.Scheduler` is driven by the real frontend, by the simulator and by property-based tests alike;
it knows ids and times, never arrays, sockets or clocks.
"""
