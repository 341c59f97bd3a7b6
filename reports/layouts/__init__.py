"""Table layouts: YAML files and modules; see :mod:`reports.tables`."""
