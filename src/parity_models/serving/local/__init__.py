"""The engine of one machine: worker processes beside the server."""
