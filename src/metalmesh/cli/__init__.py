"""The command ``metalmesh``: one module per verb, imported only when it is asked for."""
