"""The live app: the same panels, served to this machine, with what needs the model. Needs the extra `dash`."""
