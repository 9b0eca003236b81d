"""The command `parm-lab`."""
