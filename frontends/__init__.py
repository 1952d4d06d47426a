"""Imported as `absdom.frontends` (see package-dir in pyproject.toml)."""

if __name__ != "absdom.frontends":
    raise ImportError(
        "import absdom.frontends, not 'frontends': under the bare name every module would be loaded twice"
    )
