#!/usr/bin/env python3
"""Converts parquet to JSON lines for data/tokenize: the column `text` of each FILE.parquet becomes FILE.jsonl beside it, one row per line. An
existing .jsonl is left as it is; a new one appears only when it is complete. Rows whose text is null or empty are left out, and counted."""
import argparse
import json
import os
import signal
import sys
from pathlib import Path


def fail(message):
    print(f"parquet_to_jsonl.py: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


def convert(path, target, pyarrow):
    """Writes one row group at a time: the memory is that of the largest group."""
    part = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    rows = left_out = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as source, open(part, "w", encoding="utf-8", newline="\n") as out:
            schema = source.schema_arrow
            if "text" not in schema.names:
                fail(f"'{path}' has no column 'text'; it has {', '.join(schema.names) or 'none'}")
            kind = schema.field("text").type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                fail(f"the column 'text' of '{path}' is of type {kind}, but must be string")
            for group in range(source.num_row_groups):
                for text in source.read_row_group(group, columns=["text"]).column("text"):
                    text = text.as_py()
                    rows += 1
                    if not text:
                        left_out += 1
                        continue
                    out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, target)
    except (pyarrow.ArrowException, UnicodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:   # pyarrow raises OSError without errno for data that it cannot decompress
            fail(f"cannot make '{part}' of '{path}': {error.strerror}; is there space, and are both accessible?")
        fail(f"'{path}' is damaged: {error}; remove it and fetch it again")
    finally:
        part.unlink(missing_ok=True)
    print(f"{target}: {rows - left_out} documents" + (f", {left_out} rows without text left out" if left_out else ""), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", metavar="FILE.parquet", nargs="+", type=Path)
    files = parser.parse_args().files
    for path in files:
        if path.suffix != ".parquet":
            fail(f"'{path}' does not end in .parquet")
        if not path.is_file():
            fail(f"'{path}' is not there, or is not a file")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        fail(f"pyarrow is missing ({error}); install it from PyPI: python3 -m venv .venv && .venv/bin/pip install pyarrow, and call this with .venv/bin/python3")
    for path in files:
        target = path.with_suffix(".jsonl")
        if target.exists():
            print(f"{target}: already there", flush=True)
        else:
            convert(path, target, pyarrow)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        fail("stopped; the files that it printed are complete")
