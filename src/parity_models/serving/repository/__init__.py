"""Several models and their versions in one server: a folder of bundles, and releases of new ones.

`layout` says what is in the folder. `rollout` decides, sans-I/O, which versions of a model run and
which of them takes a request; `evidence` whether a canary is worse. `managed` carries that out for
one model, `repository` for all. `sharing` decides, sans-I/O, which model has how many of the
instances that they share, and `instances` moves them. `server` puts the protocols in front.
"""
