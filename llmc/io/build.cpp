// Compiled anew when the commit changes, and nothing else is.
#include "llmc/io/build.h"

const char* build_commit() { return DEEPEN_COMMIT; }
