// The only file that is compiled again when the commit changes.
#include "llmc/io/build.h"

const char* build_commit() { return DEEPEN_COMMIT; }
