"""Several models in one server: a folder of bundles, NAME/VERSION, loaded and unloaded by name.

`layout` reads the folder, `model` runs the versions of one model, `repository` serves all of them.
"""
