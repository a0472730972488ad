"""Entry of `python -m lab.driver`, which `lab/lab` runs."""

from lab.driver.cli import main

raise SystemExit(main())
