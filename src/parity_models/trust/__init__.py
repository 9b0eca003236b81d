"""Trust in stand-ins: what an output's doubt is, and the evidence for it."""
