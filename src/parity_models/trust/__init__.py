"""Trust in stand-ins: whether an output may answer (gates.py), and still agrees (agreement.py)."""
