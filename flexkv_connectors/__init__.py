"""Adapters that put `flexkv_core` behind inference engines, one folder an engine.

Importing this package, or the package of one engine, loads no engine.
"""

__version__ = "0.1.0"
