"""`python -m ringloop.bench`: the benchmark without the command line around it."""

import argparse
import sys

from ringloop import bench

parser = argparse.ArgumentParser(
    prog="python -m ringloop.bench",
    description=bench.__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
)
bench.add_arguments(parser)
sys.exit(bench.main(parser.parse_args()))
