"""`python -m cegate_geo`: the command line where no script is on the PATH."""

from cegate_geo.cli.main import main

raise SystemExit(main())
