"""HTTP/1.1 for the REST service: the server, its connections, and what each of them reads, writes
and waits for."""
