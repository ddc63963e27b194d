"""A folder for `sys.path`, not for `import headstart.…`: see `headstart.lightning_names.install`."""
