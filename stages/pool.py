"""Put sets together to be trained on: one trial table, one receipt; nothing is extracted again."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipeline.core import overlap, params_file, trial_table
from pipeline.core.errors import InputError, run_command
from pipeline.core.files import write_text
from pipeline.features import receipt_files


def main() -> None:
    """Parse, read all, join, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--pool", required=True, help="name of the pool, a key of `pools` in the parameters")
    parser.add_argument(
        "--trials", type=Path, required=True, help="folder with the trial tables, <set>.csv; is written to"
    )
    parser.add_argument(
        "--features", type=Path, required=True, help="folder with the receipts, <set>.json; is written to"
    )
    parser.add_argument(
        "--extracted", type=Path, required=True, help="folder with what extract says of each set, <set>.json"
    )
    args = parser.parse_args()
    settings = params_file.load(args.params)
    if args.pool not in settings.pools:
        raise InputError(
            f"{args.params}: pools: expected one of {', '.join(settings.pools) or 'none'}, got {args.pool!r}"
        )
    names = settings.members(args.pool)
    tables, receipts = {}, {}
    for name in names:
        table, receipt = args.trials / f"{name}.csv", args.features / f"{name}.json"
        tables[name] = trial_table.read(table)
        receipts[name] = receipt_files.read_receipts(receipt)[name]
        receipt_files.check_extracted(args.extracted / f"{name}.json", table=table, receipt=receipt)
    overlap.check_labels(tables)
    table = trial_table.pool(tables, {name: settings.sets[name].origin for name in names})
    write_text(args.trials / f"{args.pool}.csv", trial_table.to_csv(table))
    write_text(args.features / f"{args.pool}.json", json.dumps({"pool": receipts}, indent=2) + "\n")
    print(f"{args.pool}: {len(table)} trials of {', '.join(names)}")


if __name__ == "__main__":
    run_command(main)
