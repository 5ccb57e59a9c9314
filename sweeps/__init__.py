"""The sweep language: a YAML file becomes a list of run specifications. Also the sweeps we ship."""
