"""What all scripts of this folder do alike: an error is one line, and a file appears whole or not at all."""

import os
import re
import sys
from pathlib import Path


def refuse(message):
    """Ends the script with one short line, as the programs in C++ do (llmc/io/error.h)."""
    text = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", f"{Path(sys.argv[0]).stem}: {message}").split())
    if len(text) > 600:
        text = f"{text[:360]}... ({len(text) - 600} characters left out) ...{text[-240:]}"
    sys.stderr.buffer.write(text.encode("utf-8", "replace") + b"\n")
    sys.exit(2)


def write_whole(path, write, way_out=""):
    """Calls write(temporary file) and renames the file to `path`, which on an error is left as it was. way_out: what to do about such an error."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass
        refuse(f"{path}: cannot be written: {error.strerror}{way_out and '; ' + way_out}")
