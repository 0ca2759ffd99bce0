"""What the connectors need of an engine, held against the engine's sources, without installing it.

`needs` reads our sources, `interface` reads the engine's, `fit` holds one against the other, and
`drift` compares two versions of an engine. Nothing of an engine is imported or run.
"""
