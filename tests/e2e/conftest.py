"""What the end-to-end tests have in common is a plugin, so that the soak tests have it too."""

pytest_plugins = ["common"]
