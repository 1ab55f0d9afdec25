"""What pocket can do and how, measured: `python -m workbench.pocket.eval FOLDER`."""
