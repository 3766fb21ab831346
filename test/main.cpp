// The test runner's main(). Every test/<name>.cpp mirrors llmc/<name>.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
