"""The engine on Ray Serve: Ray keeps replicas alive, queries pass it by.

Nothing outside this folder imports Ray.
"""
