"""The commands of `parm`: thin, over the other rooms."""
