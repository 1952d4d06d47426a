"""Imported as `absdom.solvers` (see package-dir in pyproject.toml)."""

if __name__ != "absdom.solvers":
    raise ImportError("import absdom.solvers, not 'solvers': under the bare name every module would be loaded twice")
