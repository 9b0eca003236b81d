"""`parm protect` held to its promises: its minutes, its stand-ins, the tail it simulates."""
