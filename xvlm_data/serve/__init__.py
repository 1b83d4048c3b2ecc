"""``xvlm-data serve``: whole manifests in a browser, to search, question, compare and select from.

Nothing is ever written on the serving side, and nothing is served but the page, what manifests
say, and pictures that lie below their image root.
"""
