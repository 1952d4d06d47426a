"""Imported as `absdom.domains` (see package-dir in pyproject.toml)."""

if __name__ != "absdom.domains":
    raise ImportError("import absdom.domains, not 'domains': under the bare name every module would be loaded twice")
